// The gradient of norm.wgsl by x. With n = (x - mean) rstd and g = dy (gamma + offset):
// dx = rstd (g - mean(g) - n mean(g n)); without `layer` the term mean(g) is absent.
{% from "sums.wgsl" import lane_sum %}
{{ declarations }}

fn one_row(row: u32, lane: u32, lanes: u32) {
    let at = p.x0 + row * p.width;
    let g0 = p.dy0 + row * p.width;
    let r = rstd[p.rstd0 + row];
    let m = {% if layer %}mean[p.mean0 + row]{% else %}0.0{% endif %};
    {% if layer %}
    {{ lane_sum("s1", T, "dy[g0 + i] * (gamma[i] + p.offset)") }}
    let a = team_sum(fold_sum(s1)) * p.scale;
    {% else %}
    let a = 0.0;
    {% endif %}
    {{ lane_sum("s2", T, "dy[g0 + i] * (gamma[i] + p.offset) * (x[at + i] - m)") }}
    let b = team_sum(fold_sum(s2)) * r * r * p.scale;
    let to = p.dx0 + row * p.width;
    for (var i = lane; i < p.width; i += lanes) {
        dx[to + i] = r * (dy[g0 + i] * (gamma[i] + p.offset) - a - (x[at + i] - m) * b);
    }
}
{% include "rows.wgsl" %}
