// Quads of the operands of a matrix product. Needs what matmul_common.wgsl needs.
{% set xyzw = ["x", "y", "z", "w"] %}
{% for name, n, vec in [("a", "m", av), ("b", "n", bv)] %}
// The quad at `line`, `at` (both in elements) of an operand whose lines end at `lines`, `end`; zeros beyond.
fn quad_{{ name }}(base: u32, line: u32, at: u32, lines: u32, end: u32) -> vec4<f32> {
    if (line >= lines || at >= end) { return vec4<f32>(0.0); }
    {% if q8 and name == "b" %}
    {% if vec %}
    return quant4(line, at);
    {% else %}
    if (at + 4u <= end) { return quant4(line, at); }
    var v = vec4<f32>(quant1(line, at), 0.0, 0.0, 0.0);
    {% for j in range(1, 3) %}if (at + {{ j }}u < end) { v.{{ xyzw[j] }} = quant1(line, at + {{ j }}u); }
    {% endfor %}
    return v;
    {% endif %}
    {% else %}
    let i = base + line * p.ld{{ name }} + at;
    {% if vec %}
    return {{ name }}[i >> 2u];
    {% else %}
    var v = vec4<f32>({{ name }}[i], 0.0, 0.0, 0.0);
    {% for j in range(1, 4) %}if (at + {{ j }}u < end) { v.{{ xyzw[j] }} = {{ name }}[i + {{ j }}u]; }
    {% endfor %}
    return v;
    {% endif %}
    {% endif %}
}
{% endfor %}
