// Gated scan h_t = g_t h_{t-1} + u_t over [batch, time, channels], and its reverse for the gradient: s_t = dh_t + carry,
// du_t = s_t, dg_t = s_t h_{t-1}, carry = g_t s_t. One thread owns one (row, channel, chunk).
//   ends:  each chunk from a zero state: its end and the product of its gates
//   carry: the state at the start of every chunk, one thread a (row, channel)
//   apply: each chunk from its start
// With `log`, g is the logarithm a of the gate: h_t = h_{t-1} + (expm1(a_t) h_{t-1} + u_t), and dg is the gradient of a.
// With one chunk only `apply` runs: the recurrent form. Where a row's time is cut between dispatches (`kept`), `kept` hands
// the state on.
{% if log %}{% include "math.wgsl" %}{% endif %}

struct Params {
    rows: u32,
    time: u32,
    channels: u32,
    chunk: u32,
    chunks: u32,
    // Words bound ahead of the piece, in the tensors over time; for `past` up to the state at the piece's first step.
    first: u32,
    past_first: u32,
    // Of the piece's first row in h0 and dh0.
    state_first: u32,
    // Whether this piece begins at time 0.
    from_zero: u32,
    // And whether it ends with the last step.
    to_end: u32,
    // Whether a piece came before it in the direction of the walk.
    resumed: u32,
}
{% for b in bindings %}
@group(0) @binding({{ loop.index0 }}) var<storage, {{ b.access }}> {{ b.name }}: array<f32>;
{% endfor %}
@group(0) @binding({{ bindings | length }}) var<uniform> p: Params;

// The gate times s, plus u.
fn step(gate: f32, s: f32, u: f32) -> f32 {
    {% if log %}
    return s + (m_expm1_1(gate) * s + u);
    {% else %}
    return gate * s + u;
    {% endif %}
}

{% macro enter() %}
    var state = 0.0;
    {% if initial and not reverse %}
    state = h0[p.state_first + line];
    {% endif %}
    {% if kept %}
    if (p.resumed == 1u) { state = kept[line]; }
    {% endif %}
{% endmacro %}
{% macro leave() %}
    {% if kept %}
    kept[line] = state;
    {% endif %}
    {% if not reverse %}
    if (p.to_end == 1u) { last[p.state_first + line] = state; }
    {% elif initial %}
    if (p.from_zero == 1u) { dh0[p.state_first + line] = state; }
    {% endif %}
{% endmacro %}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    let width = p.rows * p.channels;
{% if phase == "carry" %}
    if (i >= width) { return; }
    let line = i;
    {{ enter() }}
    for (var k = 0u; k < p.chunks; k += 1u) {
        let n = {% if reverse %}p.chunks - 1u - k{% else %}k{% endif %};
        let at = n * width + line;
        starts[at] = state;
        state = step(products[at], state, ends[at]);
    }
    {{ leave() }}
{% else %}
    if (i >= width * p.chunks) { return; }
    let n = i / width;
    let line = i % width;
    let base = (line / p.channels) * p.time * p.channels + line % p.channels;
    let begin = n * p.chunk;
    let end = min(begin + p.chunk, p.time);
    {% if phase == "ends" %}
    var state = 0.0;
    var product = {{ 0.0 if log else 1.0 }};
    {% elif chunked %}
    var state = starts[i];
    {% else %}
    {{ enter() }}
    {% endif %}
    {% if reverse %}
    for (var k = begin; k < end; k += 1u) {
        let t = begin + end - 1u - k;
        let at = p.first + base + t * p.channels;
        let gate = g[at];
        let s = dh[at] + state;
        {% if phase == "ends" %}
        product {{ "+=" if log else "*=" }} gate;
        {% else %}
        var before = 0.0;
        if (t > 0u || p.from_zero == 0u) {
            before = past[p.past_first + base + t * p.channels - p.channels];
        }{% if initial %} else {
            before = h0[p.state_first + line];
        }{% endif %}

        du[at] = s;
        {% endif %}
        state = step(gate, s, 0.0);
        {% if phase == "apply" %}
        dg[at] = {{ "state" if log else "s" }} * before;
        {% endif %}
    }
    {% else %}
    for (var t = begin; t < end; t += 1u) {
        let at = p.first + base + t * p.channels;
        let gate = g[at];
        state = step(gate, state, u[at]);
        {% if phase == "ends" %}product {{ "+=" if log else "*=" }} gate;{% else %}h[at] = state;{% endif %}

    }
    {% endif %}
    {% if phase == "ends" %}
    ends[i] = state;
    products[i] = product;
    {% elif not chunked %}
    {{ leave() }}
    {% endif %}
{% endif %}
}
