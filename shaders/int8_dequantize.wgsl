// f32 from int8 values and their scales; one invocation a word of four values.
struct Params { n: u32, columns: u32, group: u32, groups: u32 }
@group(0) @binding(0) var<storage, read_write> y: array<{{ "vec4<f32>" if quads else "f32" }}>;
@group(0) @binding(1) var<storage, read> q: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let word = gid.x + gid.y * nwg.x * 64u;
    let first = word * 4u;
    if (first >= p.n) { return; }
    let v = vec4<f32>(unpack4xI8(q[word]));
    {% if quads %}
    let row = first / p.columns;
    y[word] = v * scales[row * p.groups + (first - row * p.columns) / p.group];
    {% else %}
    {% for j in range(4) %}
    if (first + {{ j }}u < p.n) {
        let row = (first + {{ j }}u) / p.columns;
        y[first + {{ j }}u] = v[{{ j }}] * scales[row * p.groups + (first + {{ j }}u - row * p.columns) / p.group];
    }
    {% endfor %}
    {% endif %}
}
