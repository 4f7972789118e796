// Attention to a cache without workgroup memory or barriers: a thread owns one query row and one part of the text, keeps both the query
// and the result in registers, and streams keys and values from storage. Neighbouring threads read the same addresses.
{% include "math.wgsl" %}
{% macro each(body) %}
{% if NV <= 32 %}{% for i in range(NV) %}
    {{ body | replace("@", i ~ "u") }}{% endfor %}
{% else %}
    for (var unit = 0u; unit < {{ NV }}u; unit += 1u) { {{ body | replace("@", "unit") }} }
{% endif %}
{% endmacro %}
{% macro total(x) %}{% if quads %}dot({{ x }}, vec4<f32>(1.0)){% else %}{{ x }}{% endif %}{% endmacro %}
{% set K = "u32" if store == "i8" else ("vec2<u32>" if store == "f16" else T) %}
@group(0) @binding(0) var<storage, read> query: array<{{ T }}>;
@group(0) @binding(1) var<storage, read> key: array<{{ K }}>;
@group(0) @binding(2) var<storage, read> value: array<{{ K }}>;
@group(0) @binding(3) var<storage, read> place: array<i32>;
{% set next = 4 %}
{% if store == "i8" %}
@group(0) @binding(4) var<storage, read> key_scales: array<f32>;
@group(0) @binding(5) var<storage, read> value_scales: array<f32>;
{% set next = 6 %}
{% endif %}
{% if parted %}
// Weighted sums of each (row, part), and its greatest score and sum of weights.
@group(0) @binding({{ next }}) var<storage, read_write> sums: array<{{ T }}>;
@group(0) @binding({{ next + 1 }}) var<storage, read_write> ends: array<vec2<f32>>;
@group(0) @binding({{ next + 2 }}) var<uniform> p: Params;
{% else %}
@group(0) @binding({{ next }}) var<storage, read_write> out: array<{{ T }}>;
@group(0) @binding({{ next + 1 }}) var<uniform> p: Params;
{% endif %}

{% for name in ["key", "value"] %}
fn {{ name }}_at(unit: u32) -> {{ T }} {
    {% if store == "i8" %}
    return vec4<f32>(unpack4xI8({{ name }}[unit]));
    {% elif store == "f16" %}
    let words = {{ name }}[unit];
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
    {% else %}
    return {{ name }}[unit];
    {% endif %}
}
{% endfor %}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (i >= p.count) { return; }
    let group = p.heads / p.kv_heads;
    let rows = p.tokens * group;
    let row = i % rows;
    let part = (i / rows) % p.parts;
    let own = i / rows / p.parts;
    let b = (p.head + own) / p.kv_heads;
    let at = place_of(b);
    let t = i32(row / group);
    var q: array<{{ T }}, {{ NV }}>;
    var acc: array<{{ T }}, {{ NV }}>;
    let from_q = row_at(own, row);
    {{ each("q[@] = query[from_q + @] * p.scale; acc[@] = " ~ T ~ "(0.0);") }}
    var top = -1e30;
    var sum = 0.0;
    var span = visible(at, t);
    let first = visible(at, 0).x + i32(part * p.part);
    span = vec2<i32>(max(span.x, first), min(span.y, first + i32(p.part)));
    if (t >= at.y) { span.y = span.x; }
    let base = own * p.slots;
    var slot = u32(span.x) % p.slots;
    for (var j = span.x; j < span.y; j += 4) {
        // Positions past the end are read from the first of the four and weigh nothing.
        let live = vec4<i32>(j, j + 1, j + 2, j + 3) < vec4<i32>(span.y);
        var slots = vec4<u32>(slot) + vec4<u32>(0u, 1u, 2u, 3u);
        slots = select(slots, slots - p.slots, slots >= vec4<u32>(p.slots));
        let v = vec4<u32>(base) + select(vec4<u32>(slot), slots, live);
        let k0 = v.x * {{ NV }}u;
        let k1 = v.y * {{ NV }}u;
        let k2 = v.z * {{ NV }}u;
        let k3 = v.w * {{ NV }}u;
        var s0 = {{ T }}(0.0);
        var s1 = {{ T }}(0.0);
        var s2 = {{ T }}(0.0);
        var s3 = {{ T }}(0.0);
        {{ each("s0 += q[@] * key_at(k0 + @); s1 += q[@] * key_at(k1 + @); s2 += q[@] * key_at(k2 + @); s3 += q[@] * key_at(k3 + @);") }}
        var scores = vec4<f32>({{ total("s0") }}, {{ total("s1") }}, {{ total("s2") }}, {{ total("s3") }});
        {% if store == "i8" %}
        scores *= vec4<f32>(key_scales[v.x], key_scales[v.y], key_scales[v.z], key_scales[v.w]);
        {% endif %}
        {% if capped %}
        scores = p.cap * m_tanh_4(scores / p.cap);
        {% endif %}
        let s = select(vec4<f32>(-1e30), scores, live);
        let before = top;
        top = max(top, max(max(s.x, s.y), max(s.z, s.w)));
        let keep = m_exp_1(before - top);
        var e = select(vec4<f32>(0.0), m_exp_4(s - top), live);
        sum = sum * keep + dot(e, vec4<f32>(1.0));
        {% if store == "i8" %}
        e *= vec4<f32>(value_scales[v.x], value_scales[v.y], value_scales[v.z], value_scales[v.w]);
        {% endif %}
        {{ each("acc[@] = acc[@] * keep + (e.x * value_at(k0 + @) + e.y * value_at(k1 + @) + e.z * value_at(k2 + @) + e.w * value_at(k3 + @));") }}
        slot += 4u;
        // A ring may be shorter than four.
        if (slot >= p.slots) { slot = slot % p.slots; }
    }
    {% if parted %}
    let result = (own * rows + row) * p.parts + part;
    ends[result] = vec2<f32>(top, sum);
    {{ each("sums[result * " ~ NV ~ "u + @] = acc[@];") }}
    {% else %}
    var norm = 0.0;
    if (sum > 0.0) { norm = 1.0 / sum; }
    {{ each("out[from_q + @] = acc[@] * norm;") }}
    {% endif %}
}
