// First stage of the gradients of norm.wgsl by gamma and beta: each invocation sums dy (x - mean) rstd and dy over one block of
// rows of one column (W columns); reduce_columns.wgsl adds the blocks.
// Indices count elements of type T; `_0` says where a binding starts, to be subtracted.
struct Params { units: u32, first: u32, rows: u32, block: u32, columns: u32, x_0: u32, stat_0: u32, part_0: u32 }
@group(0) @binding(0) var<storage, read> x: array<{{ T }}>;
@group(0) @binding(1) var<storage, read> dy: array<{{ T }}>;
@group(0) @binding(2) var<storage, read> rstd: array<f32>;
@group(0) @binding(3) var<storage, read_write> gamma_part: array<{{ T }}>;
{% if layer %}@group(0) @binding(4) var<storage, read> mean: array<f32>;{% endif %}
{% if beta %}@group(0) @binding(5) var<storage, read_write> beta_part: array<{{ T }}>;{% endif %}
@group(0) @binding({{ uniform }}) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let index = gid.x + gid.y * nwg.x * 64u;
    if (index >= p.units * p.columns) { return; }
    let unit = p.first + index / p.columns;
    let column = index % p.columns;
    let end = min((unit + 1u) * p.block, p.rows);
    var gamma_sum = {{ T }}(0.0);
    {% if beta %}var beta_sum = {{ T }}(0.0);{% endif %}
    for (var row = unit * p.block; row < end;) {
        var gamma_few = {{ T }}(0.0);
        {% if beta %}var beta_few = {{ T }}(0.0);{% endif %}
        for (var k = 0u; k < 32u && row < end; k += 1u) {
            let g = dy[row * p.columns + column - p.x_0];
            let n = (x[row * p.columns + column - p.x_0]{% if layer %} - mean[row - p.stat_0]{% endif %}) * rstd[row - p.stat_0];
            gamma_few += g * n;
            {% if beta %}beta_few += g;{% endif %}
            row += 1u;
        }
        gamma_sum += gamma_few;
        {% if beta %}beta_sum += beta_few;{% endif %}
    }
    let to = unit * p.columns + column - p.part_0;
    gamma_part[to] = gamma_sum;
    {% if beta %}beta_part[to] = beta_sum;{% endif %}
}
