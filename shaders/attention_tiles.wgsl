// Attention by tiles of 32 x 32 scores in workgroup memory. 64 threads in an 8 x 8 grid: thread (ty, tx) owns the scores of rows
// 4 ty .. 4 ty + 4 and columns tx, tx + 8, tx + 16, tx + 24, and of each chunk of 32 elements of its rows' results the quad tx.
// Rows are queries (columns keys), for dk and dv the other way round.
{% include "math.wgsl" %}
{% include "attention_bindings.wgsl" %}

const CHUNKS: u32 = {{ chunks }}u;
// Rows are padded by a quad so that columns fall into different banks.
const PITCH: u32 = 9u;
var<workgroup> left: array<vec4<f32>, 288>;
var<workgroup> right: array<vec4<f32>, 288>;
// Probabilities or their gradients, 32 x 32 with padding.
var<workgroup> weights: array<f32, 1056>;
{% if stage == "forward" %}var<workgroup> partial: array<f32, 256>;{% endif %}

{% macro access(buffer, store) %}
{% if store %}
fn store_{{ buffer }}(at: u32, quad: u32, v: vec4<f32>) {
    {% if T != "f32" %}
    if (quad < {{ NV }}u) { {{ buffer }}[at + quad] = v; }
    {% else %}
    {% for c in range(4) %}if (4u * quad + {{ c }}u < {{ NV }}u) { {{ buffer }}[at + 4u * quad + {{ c }}u] = v[{{ c }}]; }
    {% endfor %}
    {% endif %}
}
{% else %}
fn load_{{ buffer }}(at: u32, quad: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    {% if T != "f32" %}
    if (quad < {{ NV }}u) { v = {{ buffer }}[at + quad]; }
    {% else %}
    {% for c in range(4) %}if (4u * quad + {{ c }}u < {{ NV }}u) { v[{{ c }}] = {{ buffer }}[at + 4u * quad + {{ c }}u]; }
    {% endfor %}
    {% endif %}
    return v;
}
{% endif %}
{% endmacro %}
{{ access("query", false) }}
{{ access("key", false) }}
{{ access("value", false) }}
{% if stage == "forward" %}{{ access("out", true) }}{% else %}{{ access("d_out", false) }}{% endif %}
{% if stage == "dq" %}{{ access("d_query", true) }}{% endif %}
{% if stage == "dkv" %}{{ access("d_key", true) }}{{ access("d_value", true) }}{% endif %}

{# Brings chunk `c` of 32 rows of `buffer`, from row `from`, into `tile`; rows from `count` on are zero. #}
{% macro bring(tile, buffer, base, from, count, stride, c) %}
    for (var n = lane; n < 256u; n += 64u) {
        let r = n / 8u;
        let q = n % 8u;
        var v = vec4<f32>(0.0);
        if ({{ from }} + r < {{ count }}) { v = load_{{ buffer }}({{ base }} + ({{ from }} + r) * {{ stride }}, {{ c }} * 8u + q); }
        {{ tile }}[r * PITCH + q] = v;
    }
{% endmacro %}
{# name = the thread's 4 x 4 part of (32 rows of a) (32 rows of b)^T, one vec4 a row. #}
{% macro product(name, a, a_base, a_from, a_count, a_stride, b, b_base, b_from, b_count, b_stride) %}
    var {{ name }}0 = vec4<f32>(0.0);
    var {{ name }}1 = vec4<f32>(0.0);
    var {{ name }}2 = vec4<f32>(0.0);
    var {{ name }}3 = vec4<f32>(0.0);
    for (var c = 0u; c < CHUNKS; c += 1u) {
        workgroupBarrier();
        {{ bring("left", a, a_base, a_from, a_count, a_stride, "c") }}
        {{ bring("right", b, b_base, b_from, b_count, b_stride, "c") }}
        workgroupBarrier();
        for (var q = 0u; q < 8u; q += 1u) {
            let b0 = right[tx * PITCH + q];
            let b1 = right[(tx + 8u) * PITCH + q];
            let b2 = right[(tx + 16u) * PITCH + q];
            let b3 = right[(tx + 24u) * PITCH + q];
            {% for r in range(4) %}
            let a{{ r }} = left[(4u * ty + {{ r }}u) * PITCH + q];
            {{ name }}{{ r }} += vec4<f32>(dot(a{{ r }}, b0), dot(a{{ r }}, b1), dot(a{{ r }}, b2), dot(a{{ r }}, b3));
            {% endfor %}
        }
    }
{% endmacro %}
{# Writes one row's four values of the thread into `weights`. #}
{% macro put(r, v) %}
    {% for n in range(4) %}weights[(4u * ty + {{ r }}u) * 33u + tx + {{ 8 * n }}u] = {{ v }}[{{ n }}];
    {% endfor %}
{% endmacro %}
{# acc_r[c] += weights (32 x 32) times 32 rows of b, chunk after chunk. Starts with a barrier, after which weights are whole. #}
{% macro accumulate(acc, b, b_base, b_from, b_count, b_stride) %}
    {% for c in range(chunks) %}
    workgroupBarrier();
    {{ bring("right", b, b_base, b_from, b_count, b_stride, c ~ "u") }}
    workgroupBarrier();
    {
        {% for r in range(4) %}var t{{ r }} = vec4<f32>(0.0);
        {% endfor %}
        for (var n = 0u; n < 32u; n += 1u) {
            let v = right[n * PITCH + tx];
            {% for r in range(4) %}t{{ r }} += weights[(4u * ty + {{ r }}u) * 33u + n] * v;
            {% endfor %}
        }
        {% for r in range(4) %}{{ acc }}{{ r }}[{{ c }}] += t{{ r }};
        {% endfor %}
    }
    {% endfor %}
{% endmacro %}
{% macro declare(acc) %}
    {% for r in range(4) %}var {{ acc }}{{ r }}: array<vec4<f32>, {{ chunks }}>;
    {% for c in range(chunks) %}{{ acc }}{{ r }}[{{ c }}] = vec4<f32>(0.0);
    {% endfor %}{% endfor %}
{% endmacro %}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) nwg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let workgroup = wid.x + wid.y * nwg.x;
    if (workgroup >= p.count) { return; }
    let item = p.first + workgroup;
    let tx = lane % 8u;
    let ty = lane / 8u;
    let first_row = item % p.tiles * 32u;
    let q_stride = p.heads * {{ NV }}u;
    let kv_stride = p.kv_heads * {{ NV }}u;
    let group = p.heads / p.kv_heads;
    let column = vec4<i32>(vec4<u32>(tx, tx + 8u, tx + 16u, tx + 24u));
    {% if stage == "dkv" %}
    let kv_head = (item / p.tiles) % p.kv_heads;
    let b = item / p.tiles / p.kv_heads;
    let kv_base = (b * p.keys * p.kv_heads + kv_head) * {{ NV }}u;
    let rows = min(first_row + 32u, p.keys);
    let span = seen_by(first_row, rows - 1u);
    {{ declare("dk") }}
    {{ declare("dv") }}
    for (var h = kv_head * group; h < (kv_head + 1u) * group; h += 1u) {
        let q_base = (b * p.queries * p.heads + h) * {{ NV }}u;
        let stats_base = (b * p.heads + h) * p.queries;
        for (var near = span.x; near < span.y; near += 32) {
            let first = u32(near);
            {{ product("s", "key", "kv_base", "first_row", "p.keys", "kv_stride", "query", "q_base", "first", "p.queries", "q_stride") }}
            {{ product("t", "value", "kv_base", "first_row", "p.keys", "kv_stride", "d_out", "q_base", "first", "p.queries", "q_stride") }}
            // Row statistics and visible keys of the thread's four queries.
            {% for n in range(4) %}
            let i{{ n }} = min(first + tx + {{ 8 * n }}u, p.queries - 1u);
            let stats{{ n }} = stats[stats_base + i{{ n }}];
            let seen{{ n }} = visible(b, i{{ n }});
            {% endfor %}
            let low = vec4<i32>(seen0.x, seen1.x, seen2.x, seen3.x);
            let high = vec4<i32>(seen0.y, seen1.y, seen2.y, seen3.y);
            let inside = vec4<i32>(near) + column < vec4<i32>(span.y);
            let lse_of = vec4<f32>(stats0.x, stats1.x, stats2.x, stats3.x);
            let delta_of = vec4<f32>(stats0.y, stats1.y, stats2.y, stats3.y);
            {% for r in range(4) %}
            let j{{ r }} = vec4<i32>(i32(first_row + 4u * ty + {{ r }}u));
            let live{{ r }} = inside & (j{{ r }} >= low) & (j{{ r }} < high);
            let e{{ r }} = select(vec4<f32>(0.0), m_exp_4(s{{ r }} * p.scale - lse_of), live{{ r }});
            {{ put(r, "e" ~ r) }}
            {% endfor %}
            {{ accumulate("dv", "d_out", "q_base", "first", "p.queries", "q_stride") }}
            workgroupBarrier();
            {% for r in range(4) %}
            let d{{ r }} = e{{ r }} * (t{{ r }} - delta_of);
            {{ put(r, "d" ~ r) }}
            {% endfor %}
            {{ accumulate("dk", "query", "q_base", "first", "p.queries", "q_stride") }}
        }
    }
    {% for r in range(4) %}
    if (first_row + 4u * ty + {{ r }}u < p.keys) {
        let at = kv_base + (first_row + 4u * ty + {{ r }}u) * kv_stride;
        {% for c in range(chunks) %}
        store_d_key(at, {{ 8 * c }}u + tx, dk{{ r }}[{{ c }}] * p.scale);
        store_d_value(at, {{ 8 * c }}u + tx, dv{{ r }}[{{ c }}]);
        {% endfor %}
    }
    {% endfor %}
    {% else %}
    let h = (item / p.tiles) % p.heads;
    let b = item / p.tiles / p.heads;
    let q_base = (b * p.queries * p.heads + h) * {{ NV }}u;
    let kv_base = (b * p.keys * p.kv_heads + h / group) * {{ NV }}u;
    let stats_base = (b * p.heads + h) * p.queries;
    // Both ends grow with the query: the first row's start and the last row's end cover the tile.
    let last_row = min(first_row + 31u, p.queries - 1u);
    let from_key = visible(b, first_row).x;
    let to_key = visible(b, last_row).y;
    {% for r in range(4) %}
    let row{{ r }} = first_row + 4u * ty + {{ r }}u;
    let seen{{ r }} = visible(b, row{{ r }});
    {% if stage == "dq" %}
    let stats{{ r }} = stats[stats_base + min(row{{ r }}, p.queries - 1u)];
    {% elif slots %}
    // The null slot, counted by one of the eight threads of a row.
    var top{{ r }} = 0.0;
    var sum{{ r }} = select(0.0, 1.0, tx == 0u);
    {% else %}
    var top{{ r }} = -1e30;
    var sum{{ r }} = 0.0;
    {% endif %}
    {% endfor %}
    {{ declare("acc") }}
    for (var near = from_key; near < to_key; near += 32) {
        let first = u32(near);
        {{ product("s", "query", "q_base", "first_row", "p.queries", "q_stride", "key", "kv_base", "first", "p.keys", "kv_stride") }}
        {% if stage == "dq" %}
        {{ product("t", "d_out", "q_base", "first_row", "p.queries", "q_stride", "value", "kv_base", "first", "p.keys", "kv_stride") }}
        {% endif %}
        let j = vec4<i32>(near) + column;
        {% for r in range(4) %}
        let live{{ r }} = (j >= vec4<i32>(seen{{ r }}.x)) & (j < vec4<i32>(seen{{ r }}.y));
        {% endfor %}
        {% if stage == "dq" %}
        {% for r in range(4) %}
        let e{{ r }} = select(vec4<f32>(0.0), m_exp_4(s{{ r }} * p.scale - stats{{ r }}.x), live{{ r }});
        let d{{ r }} = e{{ r }} * (t{{ r }} - stats{{ r }}.y);
        {{ put(r, "d" ~ r) }}
        {% endfor %}
        {{ accumulate("acc", "key", "kv_base", "first", "p.keys", "kv_stride") }}
        {% else %}
        {% for r in range(4) %}
        s{{ r }} = select(vec4<f32>(-1e30), s{{ r }} * p.scale, live{{ r }});
        partial[(4u * ty + {{ r }}u) * 8u + tx] = max(max(s{{ r }}.x, s{{ r }}.y), max(s{{ r }}.z, s{{ r }}.w));
        {% endfor %}
        workgroupBarrier();
        {% for r in range(4) %}
        let before{{ r }} = top{{ r }};
        for (var n = 0u; n < 8u; n += 1u) { top{{ r }} = max(top{{ r }}, partial[(4u * ty + {{ r }}u) * 8u + n]); }
        let keep{{ r }} = m_exp_1(before{{ r }} - top{{ r }});
        let e{{ r }} = select(vec4<f32>(0.0), m_exp_4(s{{ r }} - top{{ r }}), live{{ r }});
        sum{{ r }} = sum{{ r }} * keep{{ r }} + dot(e{{ r }}, vec4<f32>(1.0));
        {{ put(r, "e" ~ r) }}
        {% for c in range(chunks) %}acc{{ r }}[{{ c }}] *= keep{{ r }};
        {% endfor %}
        {% endfor %}
        {{ accumulate("acc", "value", "kv_base", "first", "p.keys", "kv_stride") }}
        {% endif %}
    }
    {% if stage == "forward" %}
    // Each thread summed its own columns.
    workgroupBarrier();
    {% for r in range(4) %}partial[(4u * ty + {{ r }}u) * 8u + tx] = sum{{ r }};
    {% endfor %}
    workgroupBarrier();
    {% for r in range(4) %}
    if (row{{ r }} < p.queries) {
        var sum = 0.0;
        for (var n = 0u; n < 8u; n += 1u) { sum += partial[(4u * ty + {{ r }}u) * 8u + n]; }
        var norm = 0.0;
        var log_sum = -1e30;
        if (sum > 0.0) {
            norm = 1.0 / sum;
            log_sum = top{{ r }} + m_log_1(sum);
        }
        if (tx == 0u) { lse[stats_base + row{{ r }}] = log_sum; }
        {% for c in range(chunks) %}store_out(q_base + row{{ r }} * q_stride, {{ 8 * c }}u + tx, acc{{ r }}[{{ c }}] * norm);
        {% endfor %}
    }
    {% endfor %}
    {% else %}
    {% for r in range(4) %}
    if (row{{ r }} < p.queries) {
        {% for c in range(chunks) %}store_d_query(q_base + row{{ r }} * q_stride, {{ 8 * c }}u + tx, acc{{ r }}[{{ c }}] * p.scale);
        {% endfor %}
    }
    {% endfor %}
    {% endif %}
    {% endif %}
}
