// Softmax of each row, or its logarithm: y = exp(x - max) / sum, or (x - max) - ln sum.
{% include "math.wgsl" %}
{% from "sums.wgsl" import lane_sum %}
{{ declarations }}
{% if not logarithm %}
// Masked elements get exactly 0.
fn exp_or_zero(x: {{ T }}) -> {{ T }} {
    return select({{ T }}(0.0), m_exp_{{ W }}(x), x > {{ T }}(-87.0));
}
{% endif %}

fn one_row(row: u32, lane: u32, lanes: u32) {
    let at = p.x0 + row * p.width;
    let to = p.y0 + row * p.width;
    var most = x[at];
    for (var i = lane; i < p.width; i += lanes) { most = max(most, x[at + i]); }
    let top = team_max(fold_max(most));
    {{ lane_sum("total", T, "m_exp_" ~ W ~ "(x[at + i] - top)") }}
    let sum = team_sum(fold_sum(total));
    {% if logarithm %}
    let log_sum = m_log_1(sum);
    for (var i = lane; i < p.width; i += lanes) { y[to + i] = (x[at + i] - top) - log_sum; }
    {% else %}
    let scale = 1.0 / sum;
    for (var i = lane; i < p.width; i += lanes) { y[to + i] = exp_or_zero(x[at + i] - top) * scale; }
    {% endif %}
}
{% include "rows.wgsl" %}
