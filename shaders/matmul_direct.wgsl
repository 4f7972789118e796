// Matrix product without workgroup memory, for devices where barriers are slow (software ones).
// Plain: an invocation computes 8 x 8 elements alone. Subgroup (Lanes): the workgroup is one subgroup of `lanes` invocations that
// computes 16 x (8 lanes) elements; a lane loads rows of A for all and keeps 8 columns of B to itself.
{% include "matmul_common.wgsl" %}
{% set rows = 16 if lanes else 8 %}{% set xyzw = ["x", "y", "z", "w"] %}
{% set a_lines = rows // lanes if lanes else rows %}
{# Four terms (k .. k + 3) of B: b<kk>_<q> is a quad of columns. #}
{% macro fetch_b() %}
{% if trans_b %}
    {% for q in range(2) %}{% for j in range(4) %}
    {% if q8 %}let t{{ q }}_{{ j }} = quant4(b{{ q }}_{{ j }}, k);
    {% elif bv %}let t{{ q }}_{{ j }} = b[(b{{ q }}_{{ j }} + k) >> 2u];
    {% else %}let e{{ q }}_{{ j }} = b{{ q }}_{{ j }} + k;
    let t{{ q }}_{{ j }} = vec4<f32>(b[e{{ q }}_{{ j }}], b[e{{ q }}_{{ j }} + 1u], b[e{{ q }}_{{ j }} + 2u], b[e{{ q }}_{{ j }} + 3u]);{% endif %}
    {% endfor %}{% endfor %}
    {% for kk in range(4) %}{% for q in range(2) %}
    let v{{ kk }}_{{ q }} = vec4<f32>({% for j in range(4) %}t{{ q }}_{{ j }}.{{ xyzw[kk] }}{{ ", " if j < 3 else "" }}{% endfor %});
    {% endfor %}{% endfor %}
{% else %}
    {% for kk in range(4) %}
    let k{{ kk }} = (k + {{ kk }}u) * p.ldb;
    {% for q in range(2) %}
    {% if bv %}let v{{ kk }}_{{ q }} = b[(b{{ q }}_0 + k{{ kk }}) >> 2u];
    {% else %}let v{{ kk }}_{{ q }} = vec4<f32>({% for j in range(4) %}b[b{{ q }}_{{ j }} + k{{ kk }}]{{ ", " if j < 3 else "" }}{% endfor %});{% endif %}
    {% endfor %}{% endfor %}
{% endif %}
{% endmacro %}
{# Four terms of A: x<r> is row r along k. #}
{% macro fetch_a() %}
{% if trans_a %}
    {% if av %}
    {% for kk in range(4) %}{% for h in range(2) %}let s{{ h }}_{{ kk }} = a[(a{{ 4 * h }} + (k + {{ kk }}u) * p.lda) >> 2u];
    {% endfor %}{% endfor %}
    {% for r in range(rows) %}let x{{ r }} = vec4<f32>({% for kk in range(4) %}s{{ r // 4 }}_{{ kk }}.{{ xyzw[r % 4] }}{{ ", " if kk < 3 else "" }}{% endfor %});
    {% endfor %}
    {% else %}
    {% for r in range(a_lines) %}let x{{ r }} = vec4<f32>({% for kk in range(4) %}a[a{{ r }} + (k + {{ kk }}u) * p.lda]{{ ", " if kk < 3 else "" }}{% endfor %});
    {% endfor %}
    {% endif %}
{% else %}
    {% for r in range(a_lines) %}
    {% if av %}let x{{ r }} = a[(a{{ r }} + k) >> 2u];
    {% else %}let f{{ r }} = a{{ r }} + k;
    let x{{ r }} = vec4<f32>(a[f{{ r }}], a[f{{ r }} + 1u], a[f{{ r }} + 2u], a[f{{ r }} + 3u]);{% endif %}
    {% endfor %}
{% endif %}
{% endmacro %}

{% if lanes %}
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>,
        @builtin(local_invocation_index) local: u32, @builtin(subgroup_invocation_id) lane: u32) {
    let t = wid.x + wid.y * nwg.x;
    if (t >= p.count) { return; }
    let tile = tile_at(t);
    let row = tile.row * 16u;
    let column = tile.column * {{ 8 * lanes }}u + local * 4u;
    {% set column_step = 4 * lanes %}
    {% for l in range(a_lines) %}let a{{ l }} = tile.a + min(row + {{ l * lanes }}u + lane, p.m - 1u){{ "" if trans_a else " * p.lda" }};
    {% endfor %}
{% else %}
@compute @workgroup_size(16)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let t = (wid.x + wid.y * nwg.x) * 16u + local;
    if (t >= p.count) { return; }
    let tile = tile_at(t);
    let row = tile.row * 8u;
    let column = tile.column * 8u;
    {% set column_step = 4 %}
    {# A quad of rows lies wholly inside or outside when A is read as vec4 along its rows. #}
    {% for r in range(8) %}let a{{ r }} = tile.a + min(row + {{ r }}u, {{ "p.m - 4u" if trans_a and av else "p.m - 1u" }}){{ "" if trans_a else " * p.lda" }};
    {% endfor %}
{% endif %}
    // Columns beyond the edge read the last ones and are not stored.
    {% for q in range(2) %}{% for j in range(4) %}let b{{ q }}_{{ j }} = {{ "" if q8 else "tile.b + " }}min(column + {{ q * column_step + j }}u, {{ "p.n - 4u" if bv and not trans_b else "p.n - 1u" }}){{ " * p.ldb" if trans_b and not q8 else "" }};
    {% endfor %}{% endfor %}
    {# Sums of many terms are added up in blocks, in registers: adding to memory here would double the code of every store. #}
    {% if blocks %}
    {% for r in range(rows) %}var t{{ r }}_0 = vec4<f32>(0.0); var t{{ r }}_1 = vec4<f32>(0.0);
    {% endfor %}
    for (var first = tile.k_begin; first < tile.k_end; first += FOLD) {
        let last = min(first + FOLD, tile.k_end);
    {% else %}
        let first = tile.k_begin;
        let last = tile.k_end;
    {% endif %}
        {% for r in range(rows) %}var c{{ r }}_0 = vec4<f32>(0.0); var c{{ r }}_1 = vec4<f32>(0.0);
        {% endfor %}
        var k = first;
        for (; k + 4u <= last; k += 4u) {
            {{ fetch_b() }}
            {{ fetch_a() }}
            {% for r in range(rows) %}{
                {% if lanes %}let w = subgroupBroadcast(x{{ r // lanes }}, {{ r % lanes }}u);{% else %}let w = x{{ r }};{% endif %}
                {% for q in range(2) %}c{{ r }}_{{ q }} += w.x * v0_{{ q }}; c{{ r }}_{{ q }} += w.y * v1_{{ q }}; c{{ r }}_{{ q }} += w.z * v2_{{ q }}; c{{ r }}_{{ q }} += w.w * v3_{{ q }};
                {% endfor %}
            }
            {% endfor %}
        }
        {# The vec4 loads along k prove that there is no rest. #}
        {% if not (av and not trans_a) and not (bv and trans_b) %}
        for (; k < last; k += 1u) {
            {% for q in range(2) %}
            {% if q8 %}let u{{ q }} = vec4<f32>({% for j in range(4) %}quant1(b{{ q }}_{{ j }}, k){{ ", " if j < 3 else "" }}{% endfor %});
            {% elif trans_b %}let u{{ q }} = vec4<f32>({% for j in range(4) %}b[b{{ q }}_{{ j }} + k]{{ ", " if j < 3 else "" }}{% endfor %});
            {% elif bv %}let u{{ q }} = b[(b{{ q }}_0 + k * p.ldb) >> 2u];
            {% else %}let u{{ q }} = vec4<f32>({% for j in range(4) %}b[b{{ q }}_{{ j }} + k * p.ldb]{{ ", " if j < 3 else "" }}{% endfor %});{% endif %}
            {% endfor %}
            {% for r in range(a_lines) %}
            {% if trans_a and av %}let y{{ r }} = a[(a{{ r // 4 * 4 }} + k * p.lda) >> 2u].{{ xyzw[r % 4] }};
            {% else %}let y{{ r }} = a[a{{ r }} + k{{ " * p.lda" if trans_a else "" }}];{% endif %}
            {% endfor %}
            {% for r in range(rows) %}{
                let w = {% if lanes %}subgroupBroadcast(y{{ r // lanes }}, {{ r % lanes }}u){% else %}y{{ r }}{% endif %};
                c{{ r }}_0 += w * u0; c{{ r }}_1 += w * u1;
            }
            {% endfor %}
        }
        {% endif %}
    {% if blocks %}
        {% for r in range(rows) %}{% for q in range(2) %}t{{ r }}_{{ q }} += c{{ r }}_{{ q }};
        {% endfor %}{% endfor %}
    }
    {% endif %}
    {% for r in range(rows) %}{% for q in range(2) %}store(row + {{ r }}u, column + {{ q * column_step }}u, {{ "t" if blocks else "c" }}{{ r }}_{{ q }}, tile.c);
    {% endfor %}{% endfor %}
    {% if epilogue %}
    // In a loop over what was stored: the epilogue's code stands here once, not once for every quad. Its end is not a constant,
    // so that drivers leave it a loop.
    let end = min(row + {{ rows }}u, p.m);
    for (var r = row; r < end; r += 1u) {
        finish_quad(r, column, tile.c);
        finish_quad(r, column + {{ column_step }}u, tile.c);
    }
    {% endif %}
}

{% set assign = "+=" if accumulate else "=" %}
fn store(row: u32, column: u32, v: vec4<f32>, at: u32) {
    if (row >= p.m || column >= p.n) { return; }
    let i = at + row * p.ldc + column;
    {% if cv %}
    c[i >> 2u] {{ assign }} v;
    {% else %}
    {% for j in range(4) %}if (column + {{ j }}u < p.n) { c[i + {{ j }}u] {{ assign }} v.{{ xyzw[j] }}; }
    {% endfor %}
    {% endif %}
}
{% if epilogue %}
fn finish_quad(row: u32, column: u32, at: u32) {
    if (column >= p.n) { return; }
    let i = at + row * p.ldc + column;
    {% if cv %}
    c[i >> 2u] = finish(c[i >> 2u], i >> 2u, (p.c_at + column) >> 2u);
    {% else %}
    for (var j = 0u; j < min(4u, p.n - column); j += 1u) { c[i + j] = finish(c[i + j], i + j, p.c_at + column + j); }
    {% endif %}
}
{% endif %}
