// Adds up what the parts of a text gave for each query row, in order: one invocation a unit of the result.
{% include "math.wgsl" %}
@group(0) @binding(0) var<storage, read> sums: array<{{ T }}>;
@group(0) @binding(1) var<storage, read> ends: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> place: array<i32>;
@group(0) @binding(3) var<storage, read_write> out: array<{{ T }}>;
@group(0) @binding(4) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (i >= p.count) { return; }
    let unit = i % {{ NV }}u;
    let rows = p.tokens * (p.heads / p.kv_heads);
    let own = i / {{ NV }}u / rows;
    let row = i / {{ NV }}u % rows;
    let at = place_of((p.head + own) / p.kv_heads);
    // Parts beyond the text were not written.
    let length = u32(at.x + at.y - visible(at, 0).x);
    let live = select(0u, (length + p.part - 1u) / p.part, at.y > 0);
    let first = (own * rows + row) * p.parts;
    var top = -1e30;
    for (var n = 0u; n < live; n += 1u) { top = max(top, ends[first + n].x); }
    var total = 0.0;
    var acc = {{ T }}(0.0);
    for (var n = 0u; n < live; n += 1u) {
        let end = ends[first + n];
        // A part in which the row saw nothing has no sum.
        if (end.y > 0.0) {
            let weight = m_exp_1(end.x - top);
            total += weight * end.y;
            acc += weight * sums[(first + n) * {{ NV }}u + unit];
        }
    }
    var norm = 0.0;
    if (total > 0.0) { norm = 1.0 / total; }
    out[row_at(own, row) + unit] = acc * norm;
}
