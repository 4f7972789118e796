// dx = dnll (exp(x - lse) - onehot(target)), 0 where the target is not a class.
{% include "math.wgsl" %}
{{ declarations }}

fn one_row(row: u32, lane: u32, lanes: u32) {
    let at = p.x0 + row * p.width;
    let to = p.dx0 + row * p.width;
    let t = targets[p.targets0 + row];
    let valid = t >= 0 && t < i32(p.width * {{ W }}u);
    let scale = select(0.0, dnll[p.dnll0 + row], valid);
    let log_sum = lse[p.lse0 + row];
    for (var i = lane; i < p.width; i += lanes) {
        let first = i32(i * {{ W }}u);
        let hit = {% if W == 4 %}vec4<i32>(first, first + 1, first + 2, first + 3) == vec4<i32>(t){% else %}first == t{% endif %};
        dx[to + i] = scale * (m_exp_{{ W }}(x[at + i] - log_sum) - select({{ T }}(0.0), {{ T }}(1.0), hit));
    }
}
{% include "rows.wgsl" %}
