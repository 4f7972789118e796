// Products with at most four rows, bound by reading B once. Every invocation sums some terms of some columns; terms are added in
// short blocks, so that rounding errors grow with the number of blocks.
// B along its columns (`trans_b` 0): an invocation reads quads of columns, and either `slices` invocations share the terms of one
// quad and a tree in workgroup memory adds them, or an invocation alone has `quads` of them: where a subgroup runs through all of B's
// lines before the next one starts, what it takes from a line must be long for memory to be read at its rate. B along k (`trans_b` 1): `slices` invocations, or a subgroup (`subgroups` 1), share a column.
{% include "matmul_common.wgsl" %}
{% set xyzw = ["x", "y", "z", "w"] %}
const SLICES = {{ slices }}u;
const COLUMNS = {{ columns }}u;
const BLOCK = 32u;

{% macro a_quad(r, k) %}
{%- if trans_a -%}
vec4<f32>({% for kk in range(4) %}a[tile.a + ({{ k }} + {{ kk }}u) * p.lda + {{ r }}u]{{ ", " if kk < 3 else "" }}{% endfor %})
{%- elif av -%}
a[(tile.a + {{ r }}u * p.lda + {{ k }}) >> 2u]
{%- else -%}
vec4<f32>({% for kk in range(4) %}a[tile.a + {{ r }}u * p.lda + {{ k }} + {{ kk }}u]{{ ", " if kk < 3 else "" }}{% endfor %})
{%- endif -%}
{% endmacro %}
{% macro a_one(r, k) %}
{%- if trans_a -%}a[tile.a + ({{ k }}) * p.lda + {{ r }}u]
{%- else -%}a[tile.a + {{ r }}u * p.lda + {{ k }}]{%- endif -%}
{% endmacro %}
{% macro b_quad(q, k) %}
{%- if bv -%}b[(b{{ q }} + {{ k }} * p.ldb) >> 2u]
{%- else -%}vec4<f32>({% for j in range(4) %}b[b{{ j }} + {{ k }} * p.ldb]{{ ", " if j < 3 else "" }}{% endfor %}){%- endif -%}
{% endmacro %}

fn put(row: u32, column: u32, value: f32, at: u32) {
    if (column >= p.n) { return; }
    {% if transposed %}
    let i = at + column * p.ldc + row;
    let bias_at = p.c_at + row;
    {% else %}
    let i = at + row * p.ldc + column;
    let bias_at = p.c_at + column;
    {% endif %}
    var v = value;
    if (p.accumulate != 0u) { v += c[i]; }
    c[i] = finish(v, i, bias_at);
}

{% if not trans_b %}
{% if slices > 1 %}
var<workgroup> sums: array<vec4<f32>, {{ slices * columns }}>;
{% endif %}
@compute @workgroup_size({{ slices * columns }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let t = wid.x + wid.y * nwg.x;
    if (t >= p.count) { return; }
    let tile = tile_at(t);
    let column = (tile.column * COLUMNS * {{ quads }}u + local % COLUMNS) * 4u;
    let slice = local / COLUMNS;
    {% if bv %}
    {% for q in range(quads) %}let b{{ q }} = tile.b + min(column + {{ q }}u * COLUMNS * 4u, p.n - 4u);
    {% endfor %}
    {% else %}
    {% for j in range(4) %}let b{{ j }} = tile.b + min(column + {{ j }}u, p.n - 1u);
    {% endfor %}
    {% endif %}
    {% for r in range(rows) %}{% for q in range(quads) %}var c{{ r }}_{{ q }} = vec4<f32>(0.0);
    {% endfor %}{% endfor %}
    for (var first = tile.k_begin + slice; first < tile.k_end; first += BLOCK * SLICES) {
        {% for r in range(rows) %}{% for q in range(quads) %}var d{{ r }}_{{ q }} = vec4<f32>(0.0);
        {% endfor %}{% endfor %}
        let last = min(first + BLOCK * SLICES, tile.k_end);
        var k = first;
        {% if quads == 1 %}
        // Four lines of B under way at a time.
        for (; k + 3u * SLICES < last; k += 4u * SLICES) {
            {% for kk in range(4) %}let v{{ kk }} = {{ b_quad(0, "(k + " ~ kk ~ "u * SLICES)") }};
            {% endfor %}
            {% for r in range(rows) %}{% for kk in range(4) %}d{{ r }}_0 += {{ a_one(r, "(k + " ~ kk ~ "u * SLICES)") }} * v{{ kk }};
            {% endfor %}{% endfor %}
        }
        {% endif %}
        for (; k < last; k += SLICES) {
            {% for q in range(quads) %}let v{{ q }} = {{ b_quad(q, "k") }};
            {% endfor %}
            {% for r in range(rows) %}
            let w{{ r }} = {{ a_one(r, "k") }};
            {% for q in range(quads) %}d{{ r }}_{{ q }} += w{{ r }} * v{{ q }};
            {% endfor %}{% endfor %}
        }
        {% for r in range(rows) %}{% for q in range(quads) %}c{{ r }}_{{ q }} += d{{ r }}_{{ q }};
        {% endfor %}{% endfor %}
    }
    {% for r in range(rows) %}
    {% if slices > 1 %}
    sums[local] = c{{ r }}_0;
    workgroupBarrier();
    for (var half = {{ slices * columns // 2 }}u; half >= COLUMNS; half >>= 1u) {
        if (local < half) { sums[local] += sums[local + half]; }
        workgroupBarrier();
    }
    if (local < COLUMNS) {
        let total = sums[local];
        {% for j in range(4) %}put({{ r }}u, column + {{ j }}u, total.{{ xyzw[j] }}, tile.c);
        {% endfor %}
    }
    workgroupBarrier();
    {% else %}
    {% for q in range(quads) %}{% for j in range(4) %}put({{ r }}u, column + {{ q }}u * COLUMNS * 4u + {{ j }}u, c{{ r }}_{{ q }}.{{ xyzw[j] }}, tile.c);
    {% endfor %}{% endfor %}
    {% endif %}
    {% endfor %}
}
{% else %}
{% if slices > 1 and not subgroups %}
var<workgroup> sums: array<f32, {{ slices * columns }}>;
{% endif %}
@compute @workgroup_size({{ slices * columns }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) local: u32
        {%- if subgroups %}, @builtin(subgroup_id) group: u32, @builtin(num_subgroups) group_count: u32, @builtin(subgroup_invocation_id) lane_in: u32{% endif %}) {
    let t = wid.x + wid.y * nwg.x;
    if (t >= p.count) { return; }
    let tile = tile_at(t);
    {% if subgroups %}
    let lane = lane_in;
    let lanes = {{ slices * columns }}u / group_count;
    for (var own = group; own < COLUMNS; own += group_count) {
    let column = tile.column * COLUMNS + own;
    {% else %}
    let lane = local % SLICES;
    let lanes = SLICES;
    let column = tile.column * COLUMNS + local / SLICES;
    {% endif %}
    let b0 = {{ "min(column, p.n - 1u)" if q8 else "tile.b + min(column, p.n - 1u) * p.ldb" }};
    {% for r in range(rows) %}var c{{ r }} = vec4<f32>(0.0);
    {% endfor %}
    let whole = tile.k_begin + (tile.k_end - tile.k_begin) / 4u * 4u;
    for (var first = tile.k_begin + lane * 4u; first < whole; first += BLOCK * lanes * 4u) {
        {% for r in range(rows) %}var d{{ r }} = vec4<f32>(0.0);
        {% endfor %}
        let last = min(first + BLOCK * lanes * 4u, whole);
        for (var k = first; k < last; k += lanes * 4u) {
            {% if q8 %}let v = quant4(b0, k);
            {% elif bv %}let v = b[(b0 + k) >> 2u];
            {% else %}let v = vec4<f32>(b[b0 + k], b[b0 + k + 1u], b[b0 + k + 2u], b[b0 + k + 3u]);{% endif %}
            {% for r in range(rows) %}d{{ r }} += {{ a_quad(r, "k") }} * v;
            {% endfor %}
        }
        {% for r in range(rows) %}c{{ r }} += d{{ r }};
        {% endfor %}
    }
    {% for r in range(rows) %}var sum{{ r }} = (c{{ r }}.x + c{{ r }}.y) + (c{{ r }}.z + c{{ r }}.w);
    {% endfor %}
    {% if not bv and not (av and not trans_a) %}
    for (var k = whole + lane; k < tile.k_end; k += lanes) {
        {% for r in range(rows) %}sum{{ r }} += {{ a_one(r, "k") }} * {{ "quant1(b0, k)" if q8 else "b[b0 + k]" }};
        {% endfor %}
    }
    {% endif %}
    {% for r in range(rows) %}
    {% if subgroups %}
    let total{{ r }} = subgroupAdd(sum{{ r }});
    if (lane == 0u) { put({{ r }}u, column, total{{ r }}, tile.c); }
    {% elif slices > 1 %}
    sums[local] = sum{{ r }};
    workgroupBarrier();
    for (var half = SLICES / 2u; half > 0u; half >>= 1u) {
        if (lane < half) { sums[local] += sums[local + half]; }
        workgroupBarrier();
    }
    if (lane == 0u) { put({{ r }}u, column, sums[local], tile.c); }
    workgroupBarrier();
    {% else %}
    put({{ r }}u, column, sum{{ r }}, tile.c);
    {% endif %}
    {% endfor %}
    {% if subgroups %}}{% endif %}
}
{% endif %}
