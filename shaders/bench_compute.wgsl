// Arithmetic in registers: independent chains of multiply and add, each carried from round to round, so that nothing can be left out
// or moved. `kind` is f32, fma, f16 or int8.
{% if kind == "f16" %}enable f16;
{% endif %}
struct Params { rounds: u32, factor: f32, term: f32, bytes: u32 }

@group(0) @binding(0) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(1) var<uniform> p: Params;
{% set chains = range(16) if kind == "int8" else range(8) %}
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
{%- if kind == "int8" %}
{%- for i in chains %}
    var x{{ i }} = i32(id.x + {{ i }}u);
{%- endfor %}
    for (var r = 0u; r < p.rounds; r++) {
{%- for u in range(4) %}{% for i in chains %}
        x{{ i }} = x{{ i }} + dot4I8Packed(bitcast<u32>(x{{ i }}), p.bytes);
{%- endfor %}{% endfor %}
    }
    var sum = 0;
{%- for i in chains %}
    sum = sum ^ x{{ i }};
{%- endfor %}
    let end = vec4<f32>(f32(sum));
{%- else %}
{%- set t = "vec4<f16>" if kind == "f16" else "vec4<f32>" %}
    let factor = {{ t }}(vec4<f32>(p.factor));
    let term = {{ t }}(vec4<f32>(p.term));
{%- for i in chains %}
    var x{{ i }} = {{ t }}(vec4<f32>(f32(id.x & 7u) + {{ i }}.0));
{%- endfor %}
    for (var r = 0u; r < p.rounds; r++) {
{%- for u in range(4) %}{% for i in chains %}
{%- if kind == "fma" %}
        x{{ i }} = fma(x{{ i }}, factor, term);
{%- else %}
        x{{ i }} = x{{ i }} * factor + term;
{%- endif %}
{%- endfor %}{% endfor %}
    }
    let end = vec4<f32>(x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7);
{%- endif %}
    // Never so, but only the values tell.
    if (end.x == 1.2345e30) {
        y[0] = end;
    }
}
