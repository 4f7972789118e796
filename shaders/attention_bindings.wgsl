// What attention shaders bind in each stage.
{% if stage == "forward" %}
@group(0) @binding(0) var<storage, read> query: array<{{ T }}>;
@group(0) @binding(1) var<storage, read> key: array<{{ T }}>;
@group(0) @binding(2) var<storage, read> value: array<{{ T }}>;
@group(0) @binding(3) var<storage, read_write> out: array<{{ T }}>;
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;
{% set last = 5 %}
{% elif stage == "delta" %}
@group(0) @binding(0) var<storage, read> out: array<{{ T }}>;
@group(0) @binding(1) var<storage, read> d_out: array<{{ T }}>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read_write> stats: array<vec2<f32>>;
{% set last = 4 %}
{% else %}
@group(0) @binding(0) var<storage, read> query: array<{{ T }}>;
@group(0) @binding(1) var<storage, read> key: array<{{ T }}>;
@group(0) @binding(2) var<storage, read> value: array<{{ T }}>;
@group(0) @binding(3) var<storage, read> d_out: array<{{ T }}>;
// (lse, delta) of each [batch, head, query].
@group(0) @binding(4) var<storage, read> stats: array<vec2<f32>>;
{% if stage == "dq" %}
@group(0) @binding(5) var<storage, read_write> d_query: array<{{ T }}>;
{% set last = 6 %}
{% else %}
@group(0) @binding(5) var<storage, read_write> d_key: array<{{ T }}>;
@group(0) @binding(6) var<storage, read_write> d_value: array<{{ T }}>;
{% set last = 7 %}
{% endif %}
{% endif %}
{% if ranged %}
@group(0) @binding({{ last }}) var<storage, read> {{ 'place' if slots else 'key_range' }}: array<i32>;
@group(0) @binding({{ last + 1 }}) var<uniform> p: Params;
{% else %}
@group(0) @binding({{ last }}) var<uniform> p: Params;
{% endif %}
