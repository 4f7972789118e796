// What every matrix product kernel shares: its parameters, its operands, and the epilogue
// activation(c + bias) + residual. Needs: av, bv, cv (1: the operand is read or written as vec4), n_bias, n_residual (0 or 1),
// activation, epilogue (1: there is one); q8 (1: B is words of quantised weights, stored along k): either int8 with f32 scales
// (n_scales 1) and group (terms that share a scale, 0: a whole line), quads_in_group (1: a quad never spans two groups); or a packed
// matrix (n_scales 0) with what packed_values.wgsl needs.
{% if activation not in ["None", "Relu"] %}{% include "math.wgsl" %}{% endif %}
struct Params {
    // The part of the product that this dispatch computes.
    m: u32, n: u32, k: u32,
    // Elements between stored rows, and the element where the part begins.
    lda: u32, ldb: u32, ldc: u32, a_at: u32, b_at: u32, c_at: u32,
    // Elements between matrices of a batch (0: one matrix for all).
    a_batch: u32, b_batch: u32, c_batch: u32, batches: u32,
    // Tiles across, tiles of one matrix, tiles of all matrices and splits.
    tiles_n: u32, tiles: u32, count: u32,
    // Terms of one split of the sum, and elements between the partial results.
    k_split: u32, c_split: u32,
    // 1: add to what the result holds.
    accumulate: u32,
    // Scales of a line of B.
    groups: u32,
}
@group(0) @binding(0) var<storage, read_write> c: array<{{ "vec4<f32>" if cv else "f32" }}>;
@group(0) @binding(1) var<storage, read> a: array<{{ "vec4<f32>" if av else "f32" }}>;
@group(0) @binding(2) var<storage, read> b: array<{{ "u32" if q8 else ("vec4<f32>" if bv else "f32") }}>;
{% if n_scales %}@group(0) @binding(3) var<storage, read> scales: array<f32>;{% endif %}
{% if n_bias %}@group(0) @binding({{ 3 + n_scales }}) var<storage, read> bias: array<{{ "vec4<f32>" if cv else "f32" }}>;{% endif %}
{% if n_residual %}@group(0) @binding({{ 3 + n_scales + n_bias }}) var<storage, read> residual: array<{{ "vec4<f32>" if cv else "f32" }}>;{% endif %}
@group(0) @binding({{ 3 + n_scales + n_bias + n_residual }}) var<uniform> p: Params;

// Sums of more terms than this are added up in blocks: rounding errors then grow with the number of blocks.
const FOLD = 512u;

// Where a workgroup's tile lies, and its share of the sum.
struct Tile { row: u32, column: u32, a: u32, b: u32, c: u32, k_begin: u32, k_end: u32 }

fn tile_at(t: u32) -> Tile {
    let in_matrix = t % p.tiles;
    let matrix = t / p.tiles;
    let batch = matrix % p.batches;
    let split = matrix / p.batches;
    let k_begin = split * p.k_split;
    return Tile(in_matrix / p.tiles_n, in_matrix % p.tiles_n, p.a_at + batch * p.a_batch, p.b_at + batch * p.b_batch,
        p.c_at + batch * p.c_batch + split * p.c_split, k_begin, min(p.k, k_begin + p.k_split));
}

{% set T = "vec4<f32>" if cv else "f32" %}{% set S = "4" if cv else "1" %}
// The epilogue of element (or quad) `i` in memory, whose column (or quad of columns) is `column`.
fn finish(x: {{ T }}, i: u32, column: u32) -> {{ T }} {
    var v = x;
    {% if n_bias %}v += bias[column];{% endif %}
    {% if activation == "Relu" %}v = max(v, {{ T }}(0.0));
    {% elif activation == "Silu" %}v = v * m_sigmoid_{{ S }}(v);
    {% elif activation == "GeluTanh" %}v = m_gelu_tanh_{{ S }}(v);
    {% elif activation == "GeluErf" %}v = m_gelu_erf_{{ S }}(v);{% endif %}
    {% if n_residual %}v += residual[i];{% endif %}
    return v;
}
{% if q8 and not n_scales %}{% set weights = "b" %}{% set terms = "k" %}{% include "packed_values.wgsl" %}
{% elif q8 %}
fn scale(line: u32, k: u32) -> f32 {
    return scales[line * p.groups{{ " + k / " ~ group ~ "u" if group else "" }}];
}

// Terms k .. k + 3 of a line of B; all must exist.
fn quant4(line: u32, k: u32) -> vec4<f32> {
    let i = line * p.ldb + k;
    {% if bv %}
    let word = b[i >> 2u];
    {% else %}
    // Four bytes that may lie in two words.
    let shift = (i & 3u) * 8u;
    let next = min((i >> 2u) + 1u, arrayLength(&b) - 1u);
    let word = select((b[i >> 2u] >> shift) | (b[next] << ((32u - shift) & 31u)), b[i >> 2u], shift == 0u);
    {% endif %}
    let q = vec4<f32>(unpack4xI8(word));
    {% if quads_in_group %}
    return q * scale(line, k);
    {% else %}
    return q * vec4<f32>(scale(line, k), scale(line, k + 1u), scale(line, k + 2u), scale(line, k + 3u));
    {% endif %}
}

fn quant1(line: u32, k: u32) -> f32 {
    let i = line * p.ldb + k;
    return f32(extractBits(bitcast<i32>(b[i >> 2u]), (i & 3u) * 8u, 8u)) * scale(line, k);
}
{% endif %}
