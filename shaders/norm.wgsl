// Layer normalisation (layer) or root-mean-square normalisation of each row:
// y = (x - mean) * rstd * (gamma + offset) + beta, rstd = 1 / sqrt(mean of squares + eps). Without `layer` the mean is 0.
{% from "sums.wgsl" import lane_sum %}
{{ declarations }}

fn one_row(row: u32, lane: u32, lanes: u32) {
    let at = p.x0 + row * p.width;
    {% if layer %}
    {{ lane_sum("total", T, "x[at + i]") }}
    let mean = team_sum(fold_sum(total)) * p.scale;
    {% else %}
    let mean = 0.0;
    {% endif %}
    {{ lane_sum("squares", T, "(x[at + i] - mean) * (x[at + i] - mean)") }}
    let rstd = 1.0 / sqrt(team_sum(fold_sum(squares)) * p.scale + p.eps);
    let to = p.y0 + row * p.width;
    for (var i = lane; i < p.width; i += lanes) {
        y[to + i] = (x[at + i] - mean) * rstd * (gamma[i] + p.offset){% if beta %} + beta[i]{% endif %};
    }
    if (lane == 0u) {
        {% if layer %}mean_out[p.mean_out0 + row] = mean;{% endif %}
        rstd_out[p.rstd_out0 + row] = rstd;
    }
}
{% include "rows.wgsl" %}
