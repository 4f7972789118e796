// The gradient of softmax.wgsl from its result: dx = y (dy - sum(y dy)), or for the logarithm dx = dy - exp(y) sum(dy).
{% include "math.wgsl" %}
{% from "sums.wgsl" import lane_sum %}
{{ declarations }}

fn one_row(row: u32, lane: u32, lanes: u32) {
    let at = p.y0 + row * p.width;
    let g0 = p.dy0 + row * p.width;
    let to = p.dx0 + row * p.width;
    {% if logarithm %}
    {{ lane_sum("total", T, "dy[g0 + i]") }}
    let sum = team_sum(fold_sum(total));
    for (var i = lane; i < p.width; i += lanes) { dx[to + i] = dy[g0 + i] - m_exp_{{ W }}(y[at + i]) * sum; }
    {% else %}
    {{ lane_sum("total", T, "y[at + i] * dy[g0 + i]") }}
    let sum = team_sum(fold_sum(total));
    for (var i = lane; i < p.width; i += lanes) { dx[to + i] = y[at + i] * (dy[g0 + i] - sum); }
    {% endif %}
}
{% include "rows.wgsl" %}
