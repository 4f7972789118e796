// Gated linear attention in chunks: S_t = Diag(e^a_t) S_{t-1} + k_t' v_t, o_t = q_t S_t. Tensors over time are [batch, time, heads,
// width]; query head h reads shared head h / (heads / shared). GATES log gates for a head and step: one, or one a key channel. States at
// the edges of chunks are [batch, heads, chunks + 1, D, E]. Sums of gates are made by additions only: a difference of cumulative sums
// loses the digits of open gates after a closed one. Stages, one thread a unit of its output:
//   gates:  for each step e to the sum of gates up to and with it in its chunk (weights), and after it (weights, second half); totals
//   sums:   of each chunk, sum over steps of weight x' y (D x E), 4 x 4 a thread, into the edge after it, or with `backward` before it
//   carry:  takes states across chunks, one element of a head's state a thread
//   pairs:  x_i . y_j for j <= i, times e^(gates between) where `decayed`; 4 x 4 a thread
//   mix:    rows of a product with pairs, plus what the states at the edges give; 4 x 4 a thread
//   inner:  <state, its gradient> after each chunk, for each key channel
//   deltas: q dq - k dk, for each gate
//   suffix: the gradient of the gates from both
//   group:  adds up the gradients of heads that share one
{% include "math.wgsl" %}

struct Params {
    // Units of this dispatch, and the first of them.
    first: u32,
    units: u32,
    time: u32,
    heads: u32,
    chunks: u32,
    // Heads of the stage's operands x and y.
    x_heads: u32,
    y_heads: u32,
    // Batch rows.
    batch: u32,
}
{% for b in bindings %}
@group(0) @binding({{ loop.index0 }}) var<storage, {{ b.access }}> {{ b.name }}: array<f32>;
{% endfor %}
@group(0) @binding({{ bindings | length }}) var<uniform> p: Params;

const D: u32 = {{ D }}u;
const E: u32 = {{ E }}u;
const CHUNK: u32 = {{ CHUNK }}u;
const GATES: u32 = {{ GATES }}u;

// The first element of the row of head h (of p.heads, which share `count`) at step t.
fn row(b: u32, t: u32, h: u32, count: u32, width: u32) -> u32 {
    return ((b * p.time + t) * count + h / (p.heads / count)) * width;
}

fn gate(b: u32, t: u32, h: u32) -> u32 {
    return ((b * p.time + t) * p.heads + h) * GATES;
}

fn edge(head: u32, n: u32) -> u32 {
    return (head * (p.chunks + 1u) + n) * D * E;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let local = gid.x + gid.y * nwg.x * 64u;
    if (local >= p.units) { return; }
    let unit = p.first + local;
{% if stage == "gates" %}
    let g = unit % GATES;
    let n = unit / GATES % p.chunks;
    let head = unit / GATES / p.chunks;
    let b = head / p.heads;
    let h = head % p.heads;
    let begin = n * CHUNK;
    let end = min(begin + CHUNK, p.time);
    let half = p.batch * p.time * p.heads * GATES;
    var sum = 0.0;
    for (var t = begin; t < end; t += 1u) {
        let at = gate(b, t, h) + g;
        sum += a[at];
        weights[at] = m_exp_own_1(sum);
    }
    totals[unit] = sum;
    sum = 0.0;
    for (var t = end; t > begin; t -= 1u) {
        let at = gate(b, t - 1u, h) + g;
        weights[half + at] = m_exp_own_1(sum);
        sum += a[at];
    }
{% elif stage == "sums" %}
    const ROWS: u32 = (D + 3u) / 4u;
    const COLUMNS: u32 = (E + 3u) / 4u;
    let e = unit % COLUMNS * 4u;
    let c = unit / COLUMNS % ROWS * 4u;
    let n = unit / COLUMNS / ROWS % p.chunks;
    let head = unit / COLUMNS / ROWS / p.chunks;
    let b = head / p.heads;
    let h = head % p.heads;
    let begin = n * CHUNK;
    let end = min(begin + CHUNK, p.time);
    {% if not backward %}
    let half = p.batch * p.time * p.heads * GATES;
    {% else %}
    let half = 0u;
    {% endif %}
    {% for r in range(4) %}
    var s{{ r }} = vec4<f32>(0.0);
    let c{{ r }} = min(c + {{ r }}u, D - 1u);
    let e{{ r }} = min(e + {{ r }}u, E - 1u);
    {% endfor %}
    for (var t = begin; t < end; t += 1u) {
        let at_x = row(b, t, h, p.x_heads, D);
        let at_y = row(b, t, h, p.y_heads, E);
        let w = half + gate(b, t, h);
        let v = vec4<f32>(y[at_y + e0], y[at_y + e1], y[at_y + e2], y[at_y + e3]);
        {% for r in range(4) %}
        s{{ r }} += (x[at_x + c{{ r }}] * weights[w{% if GATES > 1 %} + c{{ r }}{% endif %}]) * v;
        {% endfor %}
    }
    let to = edge(head, {% if backward %}n{% else %}n + 1u{% endif %}) + c * E + e;
    {% for r in range(4) %}{% for q in range(4) %}
    if (c + {{ r }}u < D && e + {{ q }}u < E) { states[to + {{ r }}u * E + {{ q }}u] = s{{ r }}[{{ q }}]; }
    {% endfor %}{% endfor %}
{% elif stage == "carry" %}
    let element = unit % (D * E);
    let head = unit / (D * E);
    {% if given %}
    var state = near[unit];
    {% else %}
    var state = 0.0;
    {% endif %}
    states[edge(head, {% if backward %}p.chunks{% else %}0u{% endif %}) + element] = state;
    for (var k = 0u; k < p.chunks; k += 1u) {
        {% if backward %}
        let n = p.chunks - 1u - k;
        let to = edge(head, n) + element;
        {% else %}
        let n = k;
        let to = edge(head, n + 1u) + element;
        {% endif %}
        let total = totals[(head * p.chunks + n) * GATES{% if GATES > 1 %} + element / E{% endif %}];
        state = state + (m_expm1_1(total) * state + states[to]);
        states[to] = state;
    }
    {% if kept %}
    far[unit] = state;
    {% endif %}
{% elif stage == "pairs" %}
    // Rows i and columns j of the chunk, 4 x 4.
    const TILES: u32 = (CHUNK + 3u) / 4u;
    const WIDTH: u32 = {{ "D" if over == "keys" else "E" }};
    let j = unit % TILES * 4u;
    let i = unit / TILES % TILES * 4u;
    let chunk = unit / TILES / TILES;
    let n = chunk % p.chunks;
    let head = chunk / p.chunks;
    let b = head / p.heads;
    let h = head % p.heads;
    let begin = n * CHUNK;
    let last = min(CHUNK, p.time - begin) - 1u;
    {% for r in range(4) %}
    var s{{ r }} = vec4<f32>(0.0);
    let at_x{{ r }} = row(b, begin + min(i + {{ r }}u, last), h, p.x_heads, WIDTH);
    let at_y{{ r }} = row(b, begin + min(j + {{ r }}u, last), h, p.y_heads, WIDTH);
    {% if decayed %}
    let at_a{{ r }} = gate(b, begin + min(i + {{ r }}u, last), h);
    {% endif %}
    {% endfor %}
    {# Powers of e to the sums of gates, row by row: column q starts where its own step is. A gate is added to a column's sum at the
       rows after that step. #}
    {% macro powers(c) %}
    var sums = vec4<f32>(0.0);
    for (var t = j + 1u; t < i; t += 1u) {
        let gate_t = a[gate(b, begin + min(t, last), h) + {{ c }}];
        sums += select(vec4<f32>(0.0), vec4<f32>(gate_t), vec4<u32>(t) > columns);
    }
    {% for r in range(4) %}
    sums += select(vec4<f32>(0.0), vec4<f32>(a[at_a{{ r }} + {{ c }}]), vec4<u32>(i + {{ r }}u) > columns);
    let power{{ r }} = m_exp_own_4(sums);
    {% endfor %}
    {% endmacro %}
    if (j <= i) {
        let columns = vec4<u32>(j, j + 1u, j + 2u, j + 3u);
        for (var c = 0u; c < WIDTH; c += 1u) {
            let v = vec4<f32>(y[at_y0 + c], y[at_y1 + c], y[at_y2 + c], y[at_y3 + c]);
            {% if decayed and GATES > 1 %}{{ powers("c") }}{% endif %}
            {% for r in range(4) %}
            s{{ r }} += x[at_x{{ r }} + c] * v{% if decayed and GATES > 1 %} * power{{ r }}{% endif %};
            {% endfor %}
        }
        {% if decayed and GATES == 1 %}
        {{ powers("0u") }}
        {% for r in range(4) %}s{{ r }} *= power{{ r }};
        {% endfor %}
        {% endif %}
        // Columns above the diagonal and steps past the end count for nothing.
        {% for r in range(4) %}
        let seen{{ r }} = columns <= vec4<u32>(min(i + {{ r }}u, last));
        s{{ r }} = select(vec4<f32>(0.0), s{{ r }}, vec4<bool>(i + {{ r }}u <= last) & seen{{ r }});
        {% endfor %}
    }
    {% for r in range(4) %}{% for q in range(4) %}
    if (i + {{ r }}u < CHUNK && j + {{ q }}u < CHUNK) { pairs[(chunk * CHUNK + i + {{ r }}u) * CHUNK + j + {{ q }}u] = s{{ r }}[{{ q }}]; }
    {% endfor %}{% endfor %}
{% elif stage == "mix" %}
    // Row i of the chunk: sum over j of pairs_ij x_j (with `turned` pairs_ji), where `between` times e^(gates between) for each column;
    // plus weight_i times y_i S, or with `flipped` y_i S'. X is as wide as the result, y as the other side of S.
    const WIDTH: u32 = {{ "D" if flipped else "E" }};
    const OTHER: u32 = {{ "E" if flipped else "D" }};
    const COLUMNS: u32 = (WIDTH + 3u) / 4u;
    const TILES: u32 = (CHUNK + 3u) / 4u;
    let m = unit % COLUMNS * 4u;
    let i = unit / COLUMNS % TILES * 4u;
    let chunk = unit / COLUMNS / TILES;
    let n = chunk % p.chunks;
    let head = chunk / p.chunks;
    let b = head / p.heads;
    let h = head % p.heads;
    let begin = n * CHUNK;
    let length = min(CHUNK, p.time - begin);
    if (i >= length) { return; }
    {% if turned %}
    let half = p.batch * p.time * p.heads * GATES;
    let state = edge(head, n + 1u);
    {% else %}
    let half = 0u;
    let state = edge(head, n);
    {% endif %}
    {% for r in range(4) %}
    let m{{ r }} = min(m + {{ r }}u, WIDTH - 1u);
    let i{{ r }} = min(i + {{ r }}u, length - 1u);
    let at_y{{ r }} = row(b, begin + i{{ r }}, h, p.y_heads, OTHER);
    let at_w{{ r }} = half + gate(b, begin + i{{ r }}, h);
    var s{{ r }} = vec4<f32>(0.0);
    {% endfor %}
    for (var c = 0u; c < OTHER; c += 1u) {
        {% if flipped %}
        let v = vec4<f32>(states[state + m0 * E + c], states[state + m1 * E + c], states[state + m2 * E + c], states[state + m3 * E + c]);
        {% else %}
        let at = state + c * E;
        let v = vec4<f32>(states[at + m0], states[at + m1], states[at + m2], states[at + m3]);
        {% endif %}
        {% for r in range(4) %}
        s{{ r }} += (y[at_y{{ r }} + c]{% if GATES > 1 and not flipped %} * weights[at_w{{ r }} + c]{% endif %}) * v;
        {% endfor %}
    }
    {% for r in range(4) %}
    {% if GATES == 1 %}
    s{{ r }} *= weights[at_w{{ r }}];
    {% elif flipped %}
    s{{ r }} *= vec4<f32>(weights[at_w{{ r }} + m0], weights[at_w{{ r }} + m1], weights[at_w{{ r }} + m2], weights[at_w{{ r }} + m3]);
    {% endif %}
    {% endfor %}
    {% if between %}
    // One row at a time, away from the diagonal, adding up the gates on the way.
    {% for r in range(4) %}
    if (i + {{ r }}u < length) {
        var sums = vec4<f32>(0.0);
        {% if turned %}
        for (var j = i{{ r }}; j < length; j += 1u) {
            let at = gate(b, begin + j, h);
            if (j > i{{ r }}) { sums += vec4<f32>(a[at + m0], a[at + m1], a[at + m2], a[at + m3]); }
            let w = pairs[(chunk * CHUNK + j) * CHUNK + i{{ r }}];
        {% else %}
        for (var k = 0u; k <= i{{ r }}; k += 1u) {
            let j = i{{ r }} - k;
            let w = pairs[(chunk * CHUNK + i{{ r }}) * CHUNK + j];
        {% endif %}
            let at_x = row(b, begin + j, h, p.x_heads, WIDTH);
            s{{ r }} += w * m_exp_own_4(sums) * vec4<f32>(x[at_x + m0], x[at_x + m1], x[at_x + m2], x[at_x + m3]);
        {% if not turned %}
            let at = gate(b, begin + j, h);
            sums += vec4<f32>(a[at + m0], a[at + m1], a[at + m2], a[at + m3]);
        {% endif %}
        }
    }
    {% endfor %}
    {% else %}
    {% if turned %}
    for (var j = i; j < length; j += 1u) {
    {% else %}
    for (var j = 0u; j <= min(i + 3u, length - 1u); j += 1u) {
    {% endif %}
        let at_x = row(b, begin + j, h, p.x_heads, WIDTH);
        let v = vec4<f32>(x[at_x + m0], x[at_x + m1], x[at_x + m2], x[at_x + m3]);
        {% for r in range(4) %}
        {% if turned %}
        s{{ r }} += pairs[(chunk * CHUNK + j) * CHUNK + i{{ r }}] * v;
        {% else %}
        s{{ r }} += pairs[(chunk * CHUNK + i{{ r }}) * CHUNK + j] * v;
        {% endif %}
        {% endfor %}
    }
    {% endif %}
    {% for r in range(4) %}
    if (i + {{ r }}u < length) {
        let to = ((b * p.time + begin + i + {{ r }}u) * p.heads + h) * WIDTH + m;
        {% for q in range(4) %}
        if (m + {{ q }}u < WIDTH) { result[to + {{ q }}u] = s{{ r }}[{{ q }}]; }
        {% endfor %}
    }
    {% endfor %}
{% elif stage == "inner" %}
    let c = unit % D;
    let n = unit / D % p.chunks;
    let at = edge(unit / D / p.chunks, n + 1u) + c * E;
    var sum = 0.0;
    for (var e = 0u; e < E; e += 1u) { sum += states[at + e] * wanted[at + e]; }
    result[unit] = sum;
{% elif stage == "deltas" %}
    let step = unit / GATES;
    let h = step % p.heads;
    let t = step / p.heads % p.time;
    let b = step / p.heads / p.time;
    {% if GATES > 1 %}
    let c = unit % GATES;
    let at = step * D + c;
    result[unit] = q[at] * dq[at] - k[row(b, t, h, p.x_heads, D) + c] * dk[at];
    {% else %}
    let at_k = row(b, t, h, p.x_heads, D);
    var first = 0.0;
    var second = 0.0;
    for (var c = 0u; c < D; c += 1u) {
        first += q[step * D + c] * dq[step * D + c];
        second += k[at_k + c] * dk[step * D + c];
    }
    result[unit] = first - second;
    {% endif %}
{% elif stage == "suffix" %}
    let g = unit % GATES;
    let chunk = unit / GATES;
    let n = chunk % p.chunks;
    let head = chunk / p.chunks;
    let begin = n * CHUNK;
    let end = min(begin + CHUNK, p.time);
    {% if GATES > 1 %}
    var sum = inner[chunk * D + g];
    {% else %}
    var sum = 0.0;
    for (var c = 0u; c < D; c += 1u) { sum += inner[chunk * D + c]; }
    {% endif %}
    for (var t = end; t > begin; t -= 1u) {
        let at = gate(head / p.heads, t - 1u, head % p.heads) + g;
        sum += deltas[at];
        // Shut: a factor below 1e-13, under the rounding of the sum.
        da[at] = select(sum, 0.0, a[at] < -30.0);
    }
{% elif stage == "group" %}
    const WIDTH: u32 = {{ "D" if over == "keys" else "E" }};
    let each = p.heads / p.x_heads;
    let at = unit / WIDTH * each * WIDTH + unit % WIDTH;
    var sum = 0.0;
    for (var r = 0u; r < each; r += 1u) { sum += x[at + r * WIDTH]; }
    result[unit] = sum;
{% endif %}
}
