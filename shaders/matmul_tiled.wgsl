// Matrix product for GPUs with workgroup memory: 256 invocations compute a tile of 64 `wide` x 64 `wide` elements, each invocation
// (4 wide) x (4 wide) of them in registers. Tiles of A and B lie in workgroup memory as they lie in storage, quads along their
// contiguous axis, so that every load is a vec4; padding keeps quads of neighbouring invocations in different banks.
{% include "matmul_common.wgsl" %}
{% set xyzw = ["x", "y", "z", "w"] %}
{% set depth = 16 if wide == 1 else 8 %}{% set quads = depth // 4 %}{% set line = 16 * wide %}
const SIDE = {{ 64 * wide }}u;
const DEPTH = {{ depth }}u;
{# Along k: SIDE lines of DEPTH / 4 quads and one of padding. Across: DEPTH lines of SIDE / 4 quads. Both: 256 quads. #}
var<workgroup> tile_a: array<vec4<f32>, {{ depth * line if trans_a else 64 * wide * (quads + 1) }}>;
var<workgroup> tile_b: array<vec4<f32>, {{ 64 * wide * (quads + 1) if trans_b else depth * line }}>;

{% include "matmul_quads.wgsl" %}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let t = wid.x + wid.y * nwg.x;
    if (t >= p.count) { return; }
    let tile = tile_at(t);
    let row = tile.row * SIDE;
    let column = tile.column * SIDE;
    let tx = local % 16u;
    let ty = local / 16u;
    {% set along = "local / " ~ quads ~ "u" %}{% set quad = "local % " ~ quads ~ "u" %}
    {% set across = "local / " ~ line ~ "u" %}{% set part = "local % " ~ line ~ "u" %}
    let a_line = {{ across if trans_a else along }};
    let a_quad = {{ part if trans_a else quad }};
    let b_line = {{ along if trans_b else across }};
    let b_quad = {{ quad if trans_b else part }};
    var first = tile.k_begin;
    loop {
        let last = min(first + FOLD, tile.k_end);
        {% for h in range(wide) %}{% for i in range(4) %}{% for g in range(wide) %}var c{{ h }}_{{ i }}_{{ g }} = vec4<f32>(0.0);
        {% endfor %}{% endfor %}{% endfor %}
        for (var k = first; k < last; k += DEPTH) {
            {% if trans_a %}let qa = quad_a(tile.a, k + a_line, row + a_quad * 4u, last, p.m);
            {% else %}let qa = quad_a(tile.a, row + a_line, k + a_quad * 4u, p.m, last);{% endif %}
            {% if trans_b %}let qb = quad_b(tile.b, column + b_line, k + b_quad * 4u, p.n, last);
            {% else %}let qb = quad_b(tile.b, k + b_line, column + b_quad * 4u, last, p.n);{% endif %}
            tile_a[a_line * {{ line if trans_a else quads + 1 }}u + a_quad] = qa;
            tile_b[b_line * {{ quads + 1 if trans_b else line }}u + b_quad] = qb;
            workgroupBarrier();
            for (var q = 0u; q < {{ quads }}u; q += 1u) {
                {% for h in range(wide) %}
                {% if trans_a %}
                {% for kk in range(4) %}let s{{ h }}_{{ kk }} = tile_a[(q * 4u + {{ kk }}u) * {{ line }}u + {{ 16 * h }}u + ty];
                {% endfor %}
                {% for i in range(4) %}let x{{ h }}_{{ i }} = vec4<f32>(s{{ h }}_0.{{ xyzw[i] }}, s{{ h }}_1.{{ xyzw[i] }}, s{{ h }}_2.{{ xyzw[i] }}, s{{ h }}_3.{{ xyzw[i] }});
                {% endfor %}
                {% else %}
                {% for i in range(4) %}let x{{ h }}_{{ i }} = tile_a[({{ 64 * h + i }}u + ty * 4u) * {{ quads + 1 }}u + q];
                {% endfor %}
                {% endif %}
                {% endfor %}
                {% for g in range(wide) %}
                {% if trans_b %}
                {% for j in range(4) %}let u{{ g }}_{{ j }} = tile_b[({{ 64 * g + 16 * j }}u + tx) * {{ quads + 1 }}u + q];
                {% endfor %}
                {% for kk in range(4) %}let v{{ g }}_{{ kk }} = vec4<f32>(u{{ g }}_0.{{ xyzw[kk] }}, u{{ g }}_1.{{ xyzw[kk] }}, u{{ g }}_2.{{ xyzw[kk] }}, u{{ g }}_3.{{ xyzw[kk] }});
                {% endfor %}
                {% else %}
                {% for kk in range(4) %}let v{{ g }}_{{ kk }} = tile_b[(q * 4u + {{ kk }}u) * {{ line }}u + {{ 16 * g }}u + tx];
                {% endfor %}
                {% endif %}
                {% for h in range(wide) %}{% for i in range(4) %}c{{ h }}_{{ i }}_{{ g }} += {% for kk in range(4) %}x{{ h }}_{{ i }}.{{ xyzw[kk] }} * v{{ g }}_{{ kk }}{{ " + " if kk < 3 else ";" }}{% endfor %}

                {% endfor %}{% endfor %}
                {% endfor %}
            }
            workgroupBarrier();
        }
        let add = p.accumulate != 0u || first > tile.k_begin;
        let done = first + FOLD >= tile.k_end;
        {% for h in range(wide) %}{% for i in range(4) %}{% for g in range(wide) %}
        {% if trans_b %}
        {% for j in range(4) %}put(row + {{ 64 * h + i }}u + ty * 4u, column + {{ 64 * g + 16 * j }}u + tx, c{{ h }}_{{ i }}_{{ g }}.{{ xyzw[j] }}, tile.c, add, done);
        {% endfor %}
        {% elif cv %}put(row + {{ 64 * h + i }}u + ty * 4u, column + {{ 64 * g }}u + tx * 4u, c{{ h }}_{{ i }}_{{ g }}, tile.c, add, done);
        {% else %}
        {% for j in range(4) %}put(row + {{ 64 * h + i }}u + ty * 4u, column + {{ 64 * g + j }}u + tx * 4u, c{{ h }}_{{ i }}_{{ g }}.{{ xyzw[j] }}, tile.c, add, done);
        {% endfor %}
        {% endif %}
        {% endfor %}{% endfor %}{% endfor %}
        first += FOLD;
        if (first >= tile.k_end) { break; }
    }
}

fn put(row: u32, column: u32, value: {{ "vec4<f32>" if cv else "f32" }}, at: u32, add: bool, done: bool) {
    if (row >= p.m || column >= p.n) { return; }
    let i = (at + row * p.ldc + column){{ " >> 2u" if cv else "" }};
    var v = value;
    if (add) { v += c[i]; }
    {% if epilogue %}if (done) { v = finish(v, i, (p.c_at + column){{ " >> 2u" if cv else "" }}); }{% endif %}
    c[i] = v;
}
