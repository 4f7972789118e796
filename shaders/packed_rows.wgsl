// Rows of a packed matrix as f32, a quad an invocation: all rows from `first` on, or (`ids` 1) those that ids name. Only those among the
// `rows` rows from `row0` on, which are bound, are written; others are left to other dispatches.
struct Params { n: u32, columns: u32, first: u32, row0: u32, rows: u32, limit: u32, ldb: u32, b_at: u32 }
@group(0) @binding(0) var<storage, read_write> y: array<{{ "vec4<f32>" if quads else "f32" }}>;
@group(0) @binding(1) var<storage, read> w: array<u32>;
{% if ids %}@group(0) @binding(2) var<storage, read> ids: array<i32>;{% endif %}
@group(0) @binding({{ 2 + ids }}) var<uniform> p: Params;
{% set weights = "w" %}{% set terms = "columns" %}{% include "packed_values.wgsl" %}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    let width = (p.columns + 3u) / 4u;
    if (i >= p.n * width) { return; }
    let out = i / width;
    let k = (i - out * width) * 4u;
    {% if ids %}
    // Ids are checked on the host; a wrong one must still not leave the matrix.
    let row = u32(clamp(ids[p.first + out], 0, i32(p.limit) - 1));
    {% else %}
    let row = p.first + out;
    {% endif %}
    if (row < p.row0 || row >= p.row0 + p.rows) { return; }
    let v = quant4(row - p.row0, k);
    {% if quads %}
    y[i] = v;
    {% else %}
    for (var j = 0u; j < min(4u, p.columns - k); j += 1u) { y[out * p.columns + k + j] = v[j]; }
    {% endif %}
}
