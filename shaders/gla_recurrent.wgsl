// Gated linear attention, one step after another: one thread a column of a head's state, which it keeps in registers.
{% include "math.wgsl" %}

struct Params {
    // Columns of states in this dispatch.
    units: u32,
    time: u32,
    heads: u32,
    key_heads: u32,
    value_heads: u32,
    // Steps of this dispatch.
    begin: u32,
    end: u32,
}
{% for b in bindings %}
@group(0) @binding({{ loop.index0 }}) var<storage, {{ b.access }}> {{ b.name }}: array<f32>;
{% endfor %}
@group(0) @binding({{ bindings | length }}) var<uniform> p: Params;

const D: u32 = {{ D }}u;
const E: u32 = {{ E }}u;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let unit = gid.x + gid.y * nwg.x * 64u;
    if (unit >= p.units) { return; }
    let e = unit % E;
    let head = unit / E;
    let b = head / p.heads;
    let h = head % p.heads;
    let at_state = head * D * E + e;
    var state: array<f32, {{ D }}>;
    for (var c = 0u; c < D; c += 1u) {
        {% if resumed %}
        state[c] = last[at_state + c * E];
        {% elif given %}
        state[c] = near[at_state + c * E];
        {% else %}
        state[c] = 0.0;
        {% endif %}
    }
    for (var t = p.begin; t < p.end; t += 1u) {
        let step = b * p.time + t;
        let at_q = (step * p.heads + h) * D;
        let at_k = (step * p.key_heads + h / (p.heads / p.key_heads)) * D;
        let value = v[(step * p.value_heads + h / (p.heads / p.value_heads)) * E + e];
        {% if GATES == 1 %}
        let grown = m_expm1_1(a[step * p.heads + h]);
        {% endif %}
        var sum = 0.0;
        for (var c = 0u; c < D; c += 1u) {
            {% if GATES > 1 %}
            let grown = m_expm1_1(a[at_q + c]);
            {% endif %}
            let next = state[c] + (grown * state[c] + k[at_k + c] * value);
            state[c] = next;
            sum += q[at_q + c] * next;
        }
        o[(step * p.heads + h) * E + e] = sum;
    }
    for (var c = 0u; c < D; c += 1u) { last[at_state + c * E] = state[c]; }
}
