// Depthwise causal convolution over time: y[b, t, c] = bias[c] + sum_k w[c, k] x[b, t - k, c], and its gradients.
{% if stage == "apply" %}
struct Params { rows: u32, time: u32, width: u32, taps: u32, reverse: u32 }
@group(0) @binding(0) var<storage, read> x: array<{{ T }}>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
{% if bias %}@group(0) @binding(2) var<storage, read> bias: array<{{ T }}>;{% endif %}
@group(0) @binding({{ 3 if bias else 2 }}) var<storage, read_write> y: array<{{ T }}>;
@group(0) @binding({{ 4 if bias else 3 }}) var<uniform> p: Params;
{% elif stage == "partial" %}
struct Params { rows: u32, time: u32, width: u32, taps: u32, segment: u32, segments: u32 }
@group(0) @binding(0) var<storage, read> x: array<{{ T }}>;
@group(0) @binding(1) var<storage, read> dy: array<{{ T }}>;
// [segments, taps + 1, channels]; the last row of a segment is for the bias.
@group(0) @binding(2) var<storage, read_write> sums: array<{{ T }}>;
@group(0) @binding(3) var<uniform> p: Params;
{% else %}
struct Params { segments: u32, channels: u32, taps: u32, accumulate: u32 }
@group(0) @binding(0) var<storage, read> sums: array<f32>;
@group(0) @binding(1) var<storage, read_write> dw: array<f32>;
@group(0) @binding(2) var<storage, read_write> d_bias: array<f32>;
@group(0) @binding(3) var<uniform> p: Params;
{% endif %}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    {% if stage == "apply" %}
    if (i >= p.rows * p.width) { return; }
    let row = i / p.width;
    let c = i - row * p.width;
    let t = row % p.time;
    var sum = {{ "bias[c]" if bias else T ~ "(0.0)" }};
    // Taps that reach before the first token (after the last one, reversed) see zeros.
    let taps = min(p.taps, select(t + 1u, p.time - t, p.reverse != 0u));
    for (var k = 0u; k < taps; k += 1u) {
        let at = select(i - k * p.width, i + k * p.width, p.reverse != 0u);
        {% if T == "f32" %}
        sum += w[c * p.taps + k] * x[at];
        {% else %}
        let tap = 4u * c * p.taps + k;
        sum += vec4<f32>(w[tap], w[tap + p.taps], w[tap + 2u * p.taps], w[tap + 3u * p.taps]) * x[at];
        {% endif %}
    }
    y[i] = sum;
    {% elif stage == "partial" %}
    if (i >= p.segments * (p.taps + 1u) * p.width) { return; }
    let c = i % p.width;
    let k = i / p.width % (p.taps + 1u);
    let first = i / p.width / (p.taps + 1u) * p.segment;
    let last = min(first + p.segment, p.rows);
    var sum = {{ T }}(0.0);
    if (k == p.taps) {
        for (var row = first; row < last; row += 1u) { sum += dy[row * p.width + c]; }
    } else {
        for (var row = first; row < last; row += 1u) {
            if (row % p.time >= k) { sum += dy[row * p.width + c] * x[(row - k) * p.width + c]; }
        }
    }
    sums[i] = sum;
    {% else %}
    if (i >= (p.taps + 1u) * p.channels) { return; }
    let c = i % p.channels;
    let k = i / p.channels;
    var sum = 0.0;
    for (var s = 0u; s < p.segments; s += 1u) { sum += sums[s * (p.taps + 1u) * p.channels + i]; }
    if (k == p.taps) {
        if (p.accumulate != 0u) { sum += d_bias[c]; }
        d_bias[c] = sum;
    } else {
        if (p.accumulate != 0u) { sum += dw[c * p.taps + k]; }
        dw[c * p.taps + k] = sum;
    }
    {% endif %}
}
