// Cross-entropy of one target a row, with the log-sum-exp of the row: nll = (max - logit of the target) + ln sum exp(x - max).
{% include "math.wgsl" %}
{% from "sums.wgsl" import lane_sum %}
{{ declarations }}

fn one_row(row: u32, lane: u32, lanes: u32) {
    let at = p.x0 + row * p.width;
    var most = x[at];
    for (var i = lane; i < p.width; i += lanes) { most = max(most, x[at + i]); }
    let top = team_max(fold_max(most));
    {{ lane_sum("total", T, "m_exp_" ~ W ~ "(x[at + i] - top)") }}
    let log_sum = m_log_1(team_sum(fold_sum(total)));
    if (lane == 0u) {
        lse[p.lse0 + row] = top + log_sum;
        let t = targets[p.targets0 + row];
        var loss = 0.0;
        if (t >= i32(p.width * {{ W }}u)) {
            // Not a class: a loss that no training run overlooks.
            loss = 3.0e38;
        } else if (t >= 0) {
            let k = u32(t);
            loss = (top - x[at + k / {{ W }}u]{% if W == 4 %}[k % 4u]{% endif %}) + log_sum;
        }
        nll[p.nll0 + row] = loss;
    }
}
{% include "rows.wgsl" %}
