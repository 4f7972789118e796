// The greatest magnitude of each group over 127: `lanes` invocations a group. 0 where it would be no normal number.
struct Params { n: u32, columns: u32, group: u32, groups: u32, stride: u32 }
@group(0) @binding(0) var<storage, read_write> scales: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<uniform> p: Params;

fn magnitude(i: u32, lane: u32) -> f32 {
    let row = i / p.groups;
    let first = (i - row * p.groups) * p.group;
    let last = min(first + p.group, p.columns);
    var most = 0.0;
    for (var k = first + lane; k < last; k += {{ lanes }}u) { most = max(most, abs(x[row * p.columns + k])); }
    return most;
}

fn store(i: u32, most: f32) {
    let scale = most / 127.0;
    scales[i] = select(0.0, scale, scale >= 1.1754943508e-38);
}

{% if lanes > 1 %}
var<workgroup> found: array<f32, {{ lanes }}>;
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = wid.x + wid.y * nwg.x;
    if (i >= p.n) { return; }
    found[lane] = magnitude(i, lane);
    workgroupBarrier();
    for (var half = {{ lanes // 2 }}u; half > 0u; half >>= 1u) {
        if (lane < half) { found[lane] = max(found[lane], found[lane + half]); }
        workgroupBarrier();
    }
    if (lane == 0u) { store(i, found[0]); }
}
{% else %}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (i >= p.n) { return; }
    store(i, magnitude(i, 0u));
}
{% endif %}
