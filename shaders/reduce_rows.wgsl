// Reduces rows of x [outer, length] in blocks: a team of invocations (see rows.wgsl) one block, written to y [outer, blocks].
// Indices count elements of type T in x and floats in y; `_0` says where a binding starts, to be subtracted.
struct Params { rows: u32, first: u32, blocks: u32, block: u32, length: u32, x_0: u32, y_0: u32, scale: f32 }
@group(0) @binding(0) var<storage, read> x: array<{{ T }}>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<uniform> p: Params;

fn one_row(row: u32, lane: u32, lanes: u32) {
    let unit = p.first + row;
    let o = unit / p.blocks;
    let start = (unit % p.blocks) * p.block;
    let first = o * p.length + start - p.x_0;
    let count = min(p.block, p.length - start);
    {% if kind in ["max", "min"] %}
    // The operator has refused an empty axis.
    var total = x[first];
    for (var i = lane; i < count; i += lanes) { total = {{ kind }}(total, x[first + i]); }
    let result = team_{{ kind }}(fold_{{ kind }}(total));
    {% else %}
    var total = {{ T }}(0.0);
    for (var i = lane; i < count;) {
        var few = {{ T }}(0.0);
        for (var k = 0u; k < 32u && i < count; k += 1u) {
            let v = x[first + i];
            few += {% if kind == "squares" %}v * v{% else %}v{% endif %};
            i += lanes;
        }
        total += few;
    }
    let result = team_sum(fold_sum(total));
    {% endif %}
    if (lane == 0u) { y[unit - p.y_0] = result * p.scale; }
}
{% include "rows.wgsl" %}
