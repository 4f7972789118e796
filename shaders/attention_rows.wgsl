// Attention without workgroup memory or barriers: a thread owns one row (a query; for dk and dv a key) in registers and streams
// the other side from storage. Neighbouring threads read the same addresses.
{% include "math.wgsl" %}
{% macro each(body) %}
{% if NV <= 32 %}{% for i in range(NV) %}
    {{ body | replace("@", i ~ "u") }}{% endfor %}
{% else %}
    for (var unit = 0u; unit < {{ NV }}u; unit += 1u) { {{ body | replace("@", "unit") }} }
{% endif %}
{% endmacro %}
{% macro total(x) %}{% if T == "f32" %}{{ x }}{% else %}dot({{ x }}, vec4<f32>(1.0)){% endif %}{% endmacro %}
{% include "attention_bindings.wgsl" %}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) nwg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let workgroup = wid.x + wid.y * nwg.x;
    if (workgroup >= p.count) { return; }
    let item = p.first + workgroup;
    let tile = item % p.tiles;
    let row = tile * 64u + lane;
    {% if stage == "dkv" %}
    if (row >= p.keys) { return; }
    let kv_head = (item / p.tiles) % p.kv_heads;
    let b = item / p.tiles / p.kv_heads;
    let at = ((b * p.keys + row) * p.kv_heads + kv_head) * {{ NV }}u;
    var k: array<{{ T }}, {{ NV }}>;
    var v: array<{{ T }}, {{ NV }}>;
    var dk: array<{{ T }}, {{ NV }}>;
    var dv: array<{{ T }}, {{ NV }}>;
    {{ each("k[@] = key[at + @] * p.scale; v[@] = value[at + @]; dk[@] = " ~ T ~ "(0.0); dv[@] = " ~ T ~ "(0.0);") }}
    let stride = p.heads * {{ NV }}u;
    let group = p.heads / p.kv_heads;
    let span = seen_by(row, row);
    for (var h = kv_head * group; h < (kv_head + 1u) * group; h += 1u) {
        let base = (b * p.queries * p.heads + h) * {{ NV }}u;
        let row_stats = (b * p.heads + h) * p.queries;
        for (var i = span.x; i < span.y; i += 2) {
            // The second of a pair may be past the end: it is read from the last row and weighs nothing.
            let i0 = u32(i);
            let i1 = u32(min(i + 1, span.y - 1));
            let q0 = base + i0 * stride;
            let q1 = base + i1 * stride;
            var s0 = {{ T }}(0.0);
            var s1 = {{ T }}(0.0);
            var t0 = {{ T }}(0.0);
            var t1 = {{ T }}(0.0);
            {{ each("s0 += k[@] * query[q0 + @]; s1 += k[@] * query[q1 + @]; t0 += v[@] * d_out[q0 + @]; t1 += v[@] * d_out[q1 + @];") }}
            let stats0 = stats[row_stats + i0];
            let stats1 = stats[row_stats + i1];
            let seen0 = visible(b, i0);
            let seen1 = visible(b, i1);
            let j = i32(row);
            let e0 = select(0.0, m_exp_1({{ total("s0") }} - stats0.x), j >= seen0.x && j < seen0.y);
            let e1 = select(0.0, m_exp_1({{ total("s1") }} - stats1.x), j >= seen1.x && j < seen1.y && i + 1 < span.y);
            let d0 = e0 * ({{ total("t0") }} - stats0.y);
            let d1 = e1 * ({{ total("t1") }} - stats1.y);
            {{ each("dv[@] += e0 * d_out[q0 + @] + e1 * d_out[q1 + @]; dk[@] += d0 * query[q0 + @] + d1 * query[q1 + @];") }}
        }
    }
    {{ each("d_key[at + @] = dk[@] * p.scale; d_value[at + @] = dv[@];") }}
    {% else %}
    if (row >= p.queries) { return; }
    let h = (item / p.tiles) % p.heads;
    let b = item / p.tiles / p.heads;
    let at = ((b * p.queries + row) * p.heads + h) * {{ NV }}u;
    let at_stats = (b * p.heads + h) * p.queries + row;
    {% if stage == "delta" %}
    var sum = {{ T }}(0.0);
    {{ each("sum += out[at + @] * d_out[at + @];") }}
    stats[at_stats] = vec2<f32>(lse[at_stats], {{ total("sum") }});
    {% else %}
    let span = visible(b, row);
    let stride = p.kv_heads * {{ NV }}u;
    let base = (b * p.keys * p.kv_heads + h / (p.heads / p.kv_heads)) * {{ NV }}u;
    var q: array<{{ T }}, {{ NV }}>;
    var acc: array<{{ T }}, {{ NV }}>;
    {{ each("q[@] = query[at + @] * p.scale; acc[@] = " ~ T ~ "(0.0);") }}
    {% if stage == "forward" %}
    {% if slots %}
    // The null slot.
    var top = 0.0;
    var sum = 1.0;
    {% else %}
    var top = -1e30;
    var sum = 0.0;
    {% endif %}
    for (var j = span.x; j < span.y; j += 4) {
        // Keys past the end are read from the last row and weigh nothing.
        let k0 = base + u32(j) * stride;
        let k1 = base + u32(min(j + 1, span.y - 1)) * stride;
        let k2 = base + u32(min(j + 2, span.y - 1)) * stride;
        let k3 = base + u32(min(j + 3, span.y - 1)) * stride;
        var s0 = {{ T }}(0.0);
        var s1 = {{ T }}(0.0);
        var s2 = {{ T }}(0.0);
        var s3 = {{ T }}(0.0);
        {{ each("s0 += q[@] * key[k0 + @]; s1 += q[@] * key[k1 + @]; s2 += q[@] * key[k2 + @]; s3 += q[@] * key[k3 + @];") }}
        let live = vec4<i32>(j, j + 1, j + 2, j + 3) < vec4<i32>(span.y);
        let scores = vec4<f32>({{ total("s0") }}, {{ total("s1") }}, {{ total("s2") }}, {{ total("s3") }});
        let s = select(vec4<f32>(-1e30), scores, live);
        let before = top;
        top = max(top, max(max(s.x, s.y), max(s.z, s.w)));
        let keep = m_exp_1(before - top);
        let e = select(vec4<f32>(0.0), m_exp_4(s - top), live);
        sum = sum * keep + dot(e, vec4<f32>(1.0));
        {{ each("acc[@] = acc[@] * keep + (e.x * value[k0 + @] + e.y * value[k1 + @] + e.z * value[k2 + @] + e.w * value[k3 + @]);") }}
    }
    var norm = 0.0;
    var log_sum = -1e30;
    if (sum > 0.0) {
        norm = 1.0 / sum;
        log_sum = top + m_log_1(sum);
    }
    lse[at_stats] = log_sum;
    {{ each("out[at + @] = acc[@] * norm;") }}
    {% else %}
    var g: array<{{ T }}, {{ NV }}>;
    {{ each("g[@] = d_out[at + @];") }}
    let row_stats = stats[at_stats];
    for (var j = span.x; j < span.y; j += 2) {
        let k0 = base + u32(j) * stride;
        let k1 = base + u32(min(j + 1, span.y - 1)) * stride;
        var s0 = {{ T }}(0.0);
        var s1 = {{ T }}(0.0);
        var t0 = {{ T }}(0.0);
        var t1 = {{ T }}(0.0);
        {{ each("s0 += q[@] * key[k0 + @]; s1 += q[@] * key[k1 + @]; t0 += g[@] * value[k0 + @]; t1 += g[@] * value[k1 + @];") }}
        let e0 = m_exp_1({{ total("s0") }} - row_stats.x);
        let e1 = select(0.0, m_exp_1({{ total("s1") }} - row_stats.x), j + 1 < span.y);
        let d0 = e0 * ({{ total("t0") }} - row_stats.y);
        let d1 = e1 * ({{ total("t1") }} - row_stats.y);
        {{ each("acc[@] += d0 * key[k0 + @] + d1 * key[k1 + @];") }}
    }
    {{ each("d_query[at + @] = acc[@] * p.scale;") }}
    {% endif %}
    {% endif %}
    {% endif %}
}
