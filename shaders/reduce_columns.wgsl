// Reduces the middle axis of x [outer, length, inner] in blocks: each invocation one block of one column (W columns), written to
// y [outer, blocks, inner]. Indices count elements of type T; `_0` says where a binding starts, to be subtracted.
struct Params { units: u32, first: u32, blocks: u32, block: u32, length: u32, inner: u32, x_0: u32, y_0: u32, scale: f32 }
@group(0) @binding(0) var<storage, read> x: array<{{ T }}>;
@group(0) @binding(1) var<storage, read_write> y: array<{{ T }}>;
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let index = gid.x + gid.y * nwg.x * 64u;
    if (index >= p.units * p.inner) { return; }
    let unit = p.first + index / p.inner;
    let column = index % p.inner;
    let o = unit / p.blocks;
    let start = (unit % p.blocks) * p.block;
    let end = o * p.length + min(start + p.block, p.length);
    var row = o * p.length + start;
    {% if kind in ["max", "min"] %}
    // The operator has refused an empty axis.
    var total = x[row * p.inner + column - p.x_0];
    for (; row < end; row += 1u) { total = {{ kind }}(total, x[row * p.inner + column - p.x_0]); }
    {% else %}
    var total = {{ T }}(0.0);
    for (; row < end;) {
        var few = {{ T }}(0.0);
        for (var k = 0u; k < 32u && row < end; k += 1u) {
            let v = x[row * p.inner + column - p.x_0];
            few += {% if kind == "squares" %}v * v{% else %}v{% endif %};
            row += 1u;
        }
        total += few;
    }
    {% endif %}
    y[unit * p.inner + column - p.y_0] = total * p.scale;
}
