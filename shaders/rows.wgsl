// Row kernels: a team of invocations shares one row and reduces over it. The shader that includes this (last) declares
// `p: Params` with a field `rows`, and `fn one_row(row: u32, lane: u32, lanes: u32)`, run by every lane of the row's team.
// Variables: team ("subgroup", "workgroup", or "subgroups": a workgroup that reduces inside its subgroups first), size (invocations
// of a workgroup), T and W (element type and its width: f32 and 1, or vec4<f32> and 4).
{% if W == 4 %}
fn fold_sum(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }
fn fold_max(v: vec4<f32>) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn fold_min(v: vec4<f32>) -> f32 { return min(min(v.x, v.y), min(v.z, v.w)); }
{% else %}
fn fold_sum(v: f32) -> f32 { return v; }
fn fold_max(v: f32) -> f32 { return v; }
fn fold_min(v: f32) -> f32 { return v; }
{% endif %}
{% if team == "subgroup" %}
fn team_sum(v: f32) -> f32 { return subgroupAdd(v); }
fn team_max(v: f32) -> f32 { return subgroupMax(v); }
fn team_min(v: f32) -> f32 { return subgroupMin(v); }

@compute @workgroup_size({{ size }})
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) nwg: vec3<u32>,
    @builtin(subgroup_id) team: u32,
    @builtin(num_subgroups) teams: u32,
) {
    // Counted rather than taken from the built-ins: a driver may run fewer lanes than the size it reports.
    let lanes = subgroupAdd(1u);
    let lane = subgroupExclusiveAdd(1u);
    let all = nwg.x * nwg.y * teams;
    for (var row = (wid.x + wid.y * nwg.x) * teams + team; row < p.rows; row += all) {
        one_row(row, lane, lanes);
    }
}
{% else %}
var<workgroup> team_values: array<f32, {{ size }}>;
var<private> team_lane: u32;
{% if team == "subgroups" %}
var<private> team_first: bool;
var<private> team_part: u32;
var<private> team_parts: u32;
{% endif %}
{% for name, builtin, a, b in [
    ("sum", "subgroupAdd", "", " + "), ("max", "subgroupMax", "max", ", "), ("min", "subgroupMin", "min", ", ")
] %}
fn team_{{ name }}(v: f32) -> f32 {
    {% if team == "subgroups" %}
    let part = {{ builtin }}(v);
    // Values of an earlier reduction may still be read.
    workgroupBarrier();
    if (team_first) { team_values[team_part] = part; }
    workgroupBarrier();
    var total = team_values[0];
    for (var k = 1u; k < team_parts; k += 1u) { total = {{ a }}(total{{ b }}team_values[k]); }
    return total;
    {% else %}
    workgroupBarrier();
    team_values[team_lane] = v;
    workgroupBarrier();
    {% for half in [128, 64, 32, 16, 8, 4, 2, 1] if half < size %}
    if (team_lane < {{ half }}u) { team_values[team_lane] = {{ a }}(team_values[team_lane]{{ b }}team_values[team_lane + {{ half }}u]); }
    workgroupBarrier();
    {% endfor %}
    return team_values[0];
    {% endif %}
}
{% endfor %}
@compute @workgroup_size({{ size }})
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) nwg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    {% if team == "subgroups" %}
    @builtin(subgroup_id) part: u32,
    @builtin(num_subgroups) parts: u32,
    @builtin(subgroup_invocation_id) part_lane: u32,
    {% endif %}
) {
    let row = wid.x + wid.y * nwg.x;
    if (row >= p.rows) { return; }
    team_lane = lane;
    {% if team == "subgroups" %}
    team_first = part_lane == 0u;
    team_part = part;
    team_parts = parts;
    {% endif %}
    one_row(row, lane, {{ size }}u);
}
{% endif %}
