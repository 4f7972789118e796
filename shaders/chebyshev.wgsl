// Chebyshev filters over time, the recurrence of all orders fused in one pass: no term ever reaches memory.
//   path:   T_k of the path graph's rescaled Laplacian. A thread streams one channel of a segment of time; T_k at position
//           t - k is made when x_t arrives, so `order` more steps on either side are all a segment needs of its neighbours.
//   bank:   powers of the causal all-pass section; a thread streams one channel through all of time.
//   matrix: T_k of a given matrix, panels of a few channels in workgroup memory.
// Mode `apply` gives y; `params` gives each part's share of the coefficients' gradient (and the pole's), which `sum` adds up.
{% for b in bindings %}
@group(0) @binding({{ loop.index0 }}) var<storage, {{ b.access }}> {{ b.name }}: array<f32>;
{% endfor %}
@group(0) @binding({{ bindings | length }}) var<uniform> p: Params;

{% if mode == "sum" %}
struct Params { parts: u32, n: u32, more: u32 }

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (i >= p.n) { return; }
    var sum = 0.0;
    // Stretches of 64 keep rounding errors small.
    for (var first = 0u; first < p.parts; first += 64u) {
        var stretch = 0.0;
        for (var k = first; k < min(first + 64u, p.parts); k += 1u) {
            stretch += parts[k * p.n + i];
        }
        sum += stretch;
    }
    if (p.more == 1u) { sum += total[i]; }
    total[i] = sum;
}
{% else %}
{% set n = order %}
struct Params {
    rows: u32,
    time: u32,
    channels: u32,
    // path: steps of a segment and segments of the piece; matrix: channels of a block and blocks.
    segment: u32,
    segments: u32,
    // The piece's time, and the first step that x is bound for.
    begin: u32,
    count: u32,
    seen: u32,
    // Words bound ahead of those, in x, and in y or dy.
    x_first: u32,
    y_first: u32,
    // Whether a piece of the same row came before.
    resumed: u32,
}

{% if kind == "path" %}
// Entry of the Laplacian between positions j and j + 1: -1 / sqrt(degree degree).
fn edge(j: i32) -> f32 {
    if (j < 0 || j + 1 >= i32(p.time)) { return 0.0; }
    let ends = select(0, 1, j == 0) + select(0, 1, j + 2 == i32(p.time));
    return select(select(-0.5, -0.70710678118654752, ends == 1), -1.0, ends == 2);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (i >= p.rows * p.segments * p.channels) { return; }
    let c = i % p.channels;
    let part = i / p.channels;
    let row = (part / p.segments) * p.time * p.channels + c;
    let lo = i32(p.begin + (part % p.segments) * p.segment);
    let hi = min(lo + i32(p.segment), i32(p.begin + p.count));
    let x_row = p.x_first + row;
    let y_row = p.y_first + row;
    // cur, prev, prior: term k at positions t - k, one and two before. sum: the sum of the terms at position t - k so far.
    {% for k in range(n + 1) %}
    var cur{{ k }} = 0.0; var prev{{ k }} = 0.0; var prior{{ k }} = 0.0; var sum{{ k }} = 0.0;
    {% if mode == "apply" %}let c{{ k }} = coeffs[c * {{ n + 1 }}u + {{ k }}u];{% else %}var dy{{ k }} = 0.0;{% endif %}

    {% endfor %}
    for (var t = max(lo - {{ n }}, 0); t < hi + {{ n }}; t += 1) {
        {% for k in range(n + 1) %}
        prior{{ k }} = prev{{ k }}; prev{{ k }} = cur{{ k }};
        {% endfor %}
        cur0 = 0.0;
        if (t < i32(p.time)) { cur0 = x[x_row + (u32(t) - p.seen) * p.channels]; }
        {% for k in range(1, n + 2) if n > 0 %}
        let e{{ k }} = edge(t - {{ k }});
        {% endfor %}
        {% for k in range(1, n + 1) %}
        cur{{ k }} = {% if k > 1 %}2.0 * ({% endif %}e{{ k + 1 }} * prior{{ k - 1 }} + e{{ k }} * cur{{ k - 1 }}{% if k > 1 %}) - prior{{ k - 2 }}{% endif %};
        {% endfor %}
        {% if mode == "apply" %}
        {% for k in range(n, 0, -1) %}
        sum{{ k }} = sum{{ k - 1 }} + c{{ k }} * cur{{ k }};
        {% endfor %}
        sum0 = c0 * cur0;
        if (t - {{ n }} >= lo) { y[y_row + (u32(t - {{ n }}) - p.begin) * p.channels] = sum{{ n }}; }
        {% else %}
        {% for k in range(n, 0, -1) %}
        dy{{ k }} = dy{{ k - 1 }};
        {% endfor %}
        dy0 = 0.0;
        if (t >= lo && t < hi) { dy0 = dy[y_row + (u32(t) - p.begin) * p.channels]; }
        {% for k in range(n + 1) %}
        sum{{ k }} += dy{{ k }} * cur{{ k }};
        {% endfor %}
        {% endif %}
    }
    {% if mode == "params" %}
    {% for k in range(n + 1) %}
    dcoeffs[i * {{ n + 1 }}u + {{ k }}u] = sum{{ k }};
    {% endfor %}
    {% endif %}
}

{% elif kind == "bank" %}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (i >= p.rows * p.channels) { return; }
    let c = i % p.channels;
    let row = (i / p.channels) * p.time * p.channels + c;
    let a = pole[c];
    {% for k in range(n + 1) %}
    var prev{{ k }} = 0.0;
    let c{{ k }} = coeffs[c * {{ n + 1 }}u + {{ k }}u];
    {% if mode == "params" %}var sum{{ k }} = 0.0; var stretch{{ k }} = 0.0; var w{{ k }} = 0.0;{% endif %}
    {% endfor %}
    {% if mode == "params" %}var pole_sum = 0.0; var pole_stretch = 0.0;{% endif %}

    {% if kept %}
    if (p.resumed == 1u) {
        {% for k in range(n + 1) %}
        prev{{ k }} = kept[{{ k }}u * p.channels + c];
        {% if mode == "params" %}w{{ k }} = kept[{{ n + 1 + k }}u * p.channels + c];{% endif %}

        {% endfor %}
    }
    {% endif %}
    for (var s = 0u; s < p.count; s += 1u) {
        let t = {% if reverse %}p.count - 1u - s{% else %}s{% endif %};
        let u0 = x[p.x_first + row + t * p.channels];
        {% for k in range(1, n + 1) %}
        let u{{ k }} = a * prev{{ k }} + prev{{ k - 1 }} - a * u{{ k - 1 }};
        {% endfor %}
        {% if mode == "apply" %}
        y[p.y_first + row + t * p.channels] = {% for k in range(n + 1) %}{% if k > 0 %} + {% endif %}c{{ k }} * u{{ k }}{% endfor %};
        {% else %}
        let g = dy[p.y_first + row + t * p.channels];
        {% for k in range(n + 1) %}
        stretch{{ k }} += g * u{{ k }};
        {% endfor %}
        // Sensitivity of each section to the pole.
        let v0 = 0.0;
        {% for k in range(1, n + 1) %}
        let v{{ k }} = a * w{{ k }} + w{{ k - 1 }} - a * v{{ k - 1 }} + prev{{ k }} - u{{ k - 1 }};
        pole_stretch += g * c{{ k }} * v{{ k }};
        {% endfor %}
        {% for k in range(1, n + 1) %}
        w{{ k }} = v{{ k }};
        {% endfor %}
        if (s % 64u == 63u || s + 1u == p.count) {
            {% for k in range(n + 1) %}
            sum{{ k }} += stretch{{ k }}; stretch{{ k }} = 0.0;
            {% endfor %}
            pole_sum += pole_stretch; pole_stretch = 0.0;
        }
        {% endif %}
        {% for k in range(n + 1) %}
        prev{{ k }} = u{{ k }};
        {% endfor %}
    }
    {% if mode == "params" %}
    {% for k in range(n + 1) %}
    dcoeffs[i * {{ n + 1 }}u + {{ k }}u] = sum{{ k }};
    {% endfor %}
    dpole[i] = pole_sum;
    {% endif %}
    {% if kept %}
    {% for k in range(n + 1) %}
    kept[{{ k }}u * p.channels + c] = prev{{ k }};
    {% if mode == "params" %}kept[{{ n + 1 + k }}u * p.channels + c] = w{{ k }};{% endif %}

    {% endfor %}
    {% endif %}
}

{% else %}
// Three panels [time, block] of the recurrence, used in turn. `segment` is the block of channels, `segments` their number.
var<workgroup> panels: array<f32, {{ panels }}>;

fn product(t: u32, c: u32, from_panel: u32) -> f32 {
    let step = p.segment;
    let stride = {% if transpose %}p.time{% else %}1u{% endif %};
    let line = {% if transpose %}t{% else %}t * p.time{% endif %};
    let whole = p.time / 4u * 4u;
    // Four sums of every fourth term keep rounding errors small, and loops short.
    var sums = vec4<f32>();
    for (var s = 0u; s < whole; s += 4u) {
        let l = line + s * stride;
        let v = from_panel + s * step + c;
        sums += vec4<f32>(matrix[l], matrix[l + stride], matrix[l + 2u * stride], matrix[l + 3u * stride])
            * vec4<f32>(panels[v], panels[v + step], panels[v + 2u * step], panels[v + 3u * step]);
    }
    for (var s = whole; s < p.time; s += 1u) {
        sums.x += matrix[line + s * stride] * panels[from_panel + s * step + c];
    }
    return (sums.x + sums.y) + (sums.z + sums.w);
}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.x + wid.y * nwg.x;
    let b = group / p.segments;
    let first = (group % p.segments) * p.segment;
    let size = p.time * p.segment;
    // All threads of a group agree: past the last group they only keep the barriers company.
    let live = b < p.rows;
    for (var i = lane; i < size; i += {{ threads }}u) {
        let c = first + i % p.segment;
        var v = 0.0;
        if (live && c < p.channels) { v = x[p.x_first + (b * p.time + i / p.segment) * p.channels + c]; }
        panels[i] = v;
    }
    workgroupBarrier();
    var at = 0u;
    var before = 0u;
    for (var k = 0u; k <= {{ n }}u; k += 1u) {
        if (k > 0u) {
            let to = (k % 3u) * size;
            for (var i = lane; i < size; i += {{ threads }}u) {
                let v = product(i / p.segment, i % p.segment, at);
                var term = v;
                if (k > 1u) { term = 2.0 * v - panels[before + i]; }
                panels[to + i] = term;
            }
            workgroupBarrier();
            before = at;
            at = to;
        }
        {% if mode == "apply" %}
        for (var i = lane; i < size; i += {{ threads }}u) {
            let c = first + i % p.segment;
            if (live && c < p.channels) {
                let o = p.y_first + (b * p.time + i / p.segment) * p.channels + c;
                let term = coeffs[c * {{ n + 1 }}u + k] * panels[at + i];
                // Each element of y belongs to one thread, which adds its terms in order.
                if (k == 0u) { y[o] = term; } else { y[o] += term; }
            }
        }
        {% else %}
        // A thread adds up one channel over one stretch of time.
        let stretches = (p.time + {{ stretch - 1 }}u) / {{ stretch }}u;
        for (var j = lane; j < p.segment * stretches; j += {{ threads }}u) {
            let c = first + j % p.segment;
            let begin = j / p.segment * {{ stretch }}u;
            if (live && c < p.channels) {
                var sum = 0.0;
                for (var t = begin; t < min(begin + {{ stretch }}u, p.time); t += 1u) {
                    sum += dy[p.y_first + (b * p.time + t) * p.channels + c] * panels[at + t * p.segment + j % p.segment];
                }
                dcoeffs[((b * stretches + j / p.segment) * p.channels + c) * {{ n + 1 }}u + k] = sum;
            }
        }
        {% endif %}
    }
}
{% endif %}
{% endif %}
