// Adds the partial results of a product whose sum was split, in order, and applies the epilogue. Partial results lie `c_split`
// elements apart and are [batches m, n] each, as the result is.
{% include "matmul_common.wgsl" %}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (i >= p.count) { return; }
    var v = {{ "vec4<f32>" if cv else "f32" }}(0.0);
    if (p.accumulate != 0u) { v = c[i]; }
    for (var s = 0u; s < p.batches; s += 1u) { v += a[s * p.c_split + i]; }
    c[i] = finish(v, i, i % p.n);
}
