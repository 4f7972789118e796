enable f16;
enable wgpu_cooperative_matrix;
// Matrix product through cooperative matrices of `side` x `side` (16 or 8): operands rounded to f16, products exact and sums in f32.
// With u = 2^-11, |error| <= (2 u + u^2 + K 2^-24) sum |a b| for operands in f16's normal range; larger ones are cut off at 65504,
// and smaller ones have an absolute error of 2^-25. Operands stored as f16 are not rounded again: only K 2^-24 is left.
// A workgroup of at least four subgroups computes 64 x 64 elements from tiles of 64 x 32 and 32 x 64 in workgroup memory; each of
// the first four subgroups has a quarter in registers. Where a driver runs smaller subgroups than its largest there are more of
// them, which compute a quarter again that nothing reads: cooperative operations must be met by all alike.
{% include "matmul_common.wgsl" %}
{% set xyzw = ["x", "y", "z", "w"] %}{% set parts = 32 // side %}
{% set M = "coop_mat" ~ side ~ "x" ~ side %}
const SIDE = 64u;
const DEPTH = 32u;
const THREADS = {{ threads }}u;
// Elements of a line in workgroup memory: padded by 16 bytes against bank conflicts, as cooperative loads must be aligned to.
const LINE_A = 40u;
const LINE_B = 72u;
// Along k, and across.
var<workgroup> tile_a: array<f16, {{ 64 * 40 }}>;
var<workgroup> tile_b: array<f16, {{ 32 * 72 }}>;
// A fragment of the result of each subgroup, of which there are at most `teams`.
var<workgroup> fragments: array<f32, {{ teams * side * side }}>;

{% include "matmul_quads.wgsl" %}

fn rounded(v: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) local: u32,
        @builtin(subgroup_id) team: u32) {
    let t = wid.x + wid.y * nwg.x;
    if (t >= p.count) { return; }
    let tile = tile_at(t);
    let row = tile.row * SIDE;
    let column = tile.column * SIDE;
    let quarter = team % 4u;
    let own_row = quarter / 2u * 32u;
    let own_column = quarter % 2u * 32u;
    // Zeros through memory: not every backend can write a matrix of zeros.
    for (var i = local; i < {{ teams * side * side }}u; i += THREADS) { fragments[i] = 0.0; }
    workgroupBarrier();
    {% for i in range(parts) %}{% for j in range(parts) %}var c{{ i }}_{{ j }} = coopLoadT<{{ M }}<f32, C>>(&fragments[team * {{ side * side }}u], {{ side }}u);
    {% endfor %}{% endfor %}
    workgroupBarrier();
    for (var k = tile.k_begin; k < tile.k_end; k += DEPTH) {
        for (var i = local; i < 512u; i += THREADS) {
            {% if trans_a %}
            let a_line = i / 16u;
            let a_at = i % 16u * 4u;
            let qa = rounded(quad_a(tile.a, k + a_line, row + a_at, tile.k_end, p.m));
            {% for j in range(4) %}tile_a[(a_at + {{ j }}u) * LINE_A + a_line] = qa.{{ xyzw[j] }};
            {% endfor %}
            {% else %}
            let a_line = i / 8u;
            let a_at = i % 8u * 4u;
            let qa = rounded(quad_a(tile.a, row + a_line, k + a_at, p.m, tile.k_end));
            {% for j in range(4) %}tile_a[a_line * LINE_A + a_at + {{ j }}u] = qa.{{ xyzw[j] }};
            {% endfor %}
            {% endif %}
            {% if trans_b %}
            let b_line = i / 8u;
            let b_at = i % 8u * 4u;
            let qb = rounded(quad_b(tile.b, column + b_line, k + b_at, p.n, tile.k_end));
            {% for j in range(4) %}tile_b[(b_at + {{ j }}u) * LINE_B + b_line] = qb.{{ xyzw[j] }};
            {% endfor %}
            {% else %}
            let b_line = i / 16u;
            let b_at = i % 16u * 4u;
            let qb = rounded(quad_b(tile.b, k + b_line, column + b_at, tile.k_end, p.n));
            {% for j in range(4) %}tile_b[b_line * LINE_B + b_at + {{ j }}u] = qb.{{ xyzw[j] }};
            {% endfor %}
            {% endif %}
        }
        workgroupBarrier();
        for (var kk = 0u; kk < DEPTH; kk += {{ side }}u) {
            {% for i in range(parts) %}let x{{ i }} = coopLoadT<{{ M }}<f16, A>>(&tile_a[(own_row + {{ i * side }}u) * LINE_A + kk], LINE_A);
            {% endfor %}
            {% for j in range(parts) %}let y{{ j }} = coopLoadT<{{ M }}<f16, B>>(&tile_b[kk * LINE_B + own_column + {{ j * side }}u], LINE_B);
            {% endfor %}
            {% for i in range(parts) %}{% for j in range(parts) %}c{{ i }}_{{ j }} = coopMultiplyAdd(x{{ i }}, y{{ j }}, c{{ i }}_{{ j }});
            {% endfor %}{% endfor %}
        }
        workgroupBarrier();
    }
    {% for i in range(parts) %}{% for j in range(parts) %}
    coopStoreT(c{{ i }}_{{ j }}, &fragments[team * {{ side * side }}u], {{ side }}u);
    workgroupBarrier();
    store(local, row + {{ i * side }}u, column + {{ j * side }}u, tile.c);
    workgroupBarrier();
    {% endfor %}{% endfor %}
}

// Writes the four fragments, one of each quarter, whose elements in the first begin at `row`, `column`.
fn store(local: u32, row: u32, column: u32, at: u32) {
    {% set quads = side // 4 %}
    for (var i = local; i < {{ side * side }}u; i += THREADS) {
        let quarter = i / {{ side * quads }}u;
        let r = row + quarter / 2u * 32u + i / {{ quads }}u % {{ side }}u;
        let q = column + quarter % 2u * 32u + i % {{ quads }}u * 4u;
        let v = vec4<f32>(fragments[i * 4u], fragments[i * 4u + 1u], fragments[i * 4u + 2u], fragments[i * 4u + 3u]);
        if (r < p.m && q < p.n) {
            let to = at + r * p.ldc + q;
            let bias_at = p.c_at + q;
            {% if cv %}
            var total = v;
            if (p.accumulate != 0u) { total += c[to >> 2u]; }
            c[to >> 2u] = finish(total, to >> 2u, bias_at >> 2u);
            {% else %}
            for (var j = 0u; j < min(4u, p.n - q); j += 1u) {
                var total = fragments[i * 4u + j];
                if (p.accumulate != 0u) { total += c[to + j]; }
                c[to + j] = finish(total, to + j, bias_at + j);
            }
            {% endif %}
        }
    }
}
