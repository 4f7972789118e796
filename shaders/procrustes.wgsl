// Orthogonal Procrustes of two clouds [observations, d] by Newton-Schulz.
//   solve:    one workgroup a (batch row, solve): the even observations, the odd ones, all of them. A thread owns one 4x4 tile of
//             every d x d matrix: it reads the whole matrix from shared memory and keeps its own tile in registers.
//   strength: one workgroup a batch row: the rotation of each fold is scored on the other fold.
// The shared matrices X and X^T X lie in workgroup memory, or in scratch storage (`in_storage`) where they do not fit.
struct Params {
    rows: u32,
    observations: u32,
    d: u32,
    iterations: u32,
    ridge: f32,
    center: u32,
    // Words bound ahead of the piece, in the clouds and in the output.
    first: u32,
    out_first: u32,
    // Words of X and X^T X together.
    shared_words: u32,
}
{% for b in bindings %}
@group(0) @binding({{ loop.index0 }}) var<storage, {{ b.access }}> {{ b.name }}: array<f32>;
{% endfor %}
@group(0) @binding({{ bindings | length }}) var<uniform> p: Params;

{% set xyzw = ["x", "y", "z", "w"] %}
const NOT_FINITE: u32 = 0x7f800000u;

// Magnitude as bits: ordered as the magnitudes are, with infinity and NaN above every number.
fn magnitude(x: f32) -> u32 {
    return bitcast<u32>(x) & 0x7fffffffu;
}

{% if phase == "solve" %}
{% macro cell(i) %}{% if in_storage %}work[base + {{ i }}]{% else %}panel[{{ i }}]{% endif %}{% endmacro %}
{% macro barrier() %}{% if in_storage %}storageBarrier();{% else %}workgroupBarrier();{% endif %}{% endmacro %}
{% macro four(start, i) %}vec4<f32>({% for k in range(4) %}{{ cell(start ~ " + " ~ i ~ "." ~ xyzw[k]) }}{% if k < 3 %}, {% endif %}{% endfor %}){% endmacro %}
{% macro store_tile() %}
    {% for j in range(4) %}{% for k in range(4) %}
    if (own && r0 + {{ j }}u < d && c0 + {{ k }}u < d) { {{ cell("at + " ~ j ~ "u * d + " ~ k ~ "u") }} = tile{{ j }}.{{ xyzw[k] }}; }
    {% endfor %}{% endfor %}
{% endmacro %}
{% if not in_storage %}
var<workgroup> panel: array<f32, {{ words }}>;
{% endif %}

// Observations `start, start + step, ..` of column `c`, averaged.
fn mean(of_b: bool, b: u32, c: u32, start: u32, step: u32) -> f32 {
    var total = 0.0;
    var stretch = 0.0;
    var count = 0u;
    for (var i = start; i < p.observations; i += step) {
        let at = p.first + (b * p.observations + i) * p.d + c;
        if (of_b) { stretch += zb[at]; } else { stretch += za[at]; }
        count += 1u;
        // Stretches of 64 keep rounding errors small.
        if (count % 64u == 0u) { total += stretch; stretch = 0.0; }
    }
    return (total + stretch) / f32(max(count, 1u));
}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = wid.x + wid.y * nwg.x;
    if (group >= p.rows * 3u) { return; }
    let b = group / 3u;
    let solve = group % 3u;
    let start = select(0u, 1u, solve == 1u);
    let step = select(2u, 1u, solve == 2u);
    let d = p.d;
    let x = 0u;
    let gram = d * d;
    {% if in_storage %}
    let base = group * p.shared_words;
    {% endif %}
    let fold = (b * 2u + solve) * (d * d + 2u * d);
    // This thread's tile; indices past the edge repeat the last row or column and are never stored.
    let side = (d + 3u) / 4u;
    let own = lane < side * side;
    let r0 = lane / side * 4u;
    let c0 = lane % side * 4u;
    let at = r0 * d + c0;
    let r = min(vec4<u32>(r0, r0 + 1u, r0 + 2u, r0 + 3u), vec4<u32>(d - 1u));
    let c = min(vec4<u32>(c0, c0 + 1u, c0 + 2u, c0 + 3u), vec4<u32>(d - 1u));

    // Means of both clouds, in the place of the Gram matrix.
    for (var k = lane; k < 2u * d; k += {{ threads }}u) {
        var m = 0.0;
        if (p.center == 1u) { m = mean(k >= d, b, k % d, start, step); }
        {{ cell("gram + k") }} = m;
        if (solve < 2u) { folds[fold + d * d + k] = m; }
    }
    {{ barrier() }}
    let mean_a = {{ four("gram", "c") }};
    let mean_b = {{ four("gram + d", "r") }};

    // M = Zb^T Za.
    {% for j in range(4) %}
    var tile{{ j }} = vec4<f32>();
    var sum{{ j }} = vec4<f32>();
    {% endfor %}
    var count = 0u;
    for (var i = start; i < p.observations; i += step) {
        let row = p.first + (b * p.observations + i) * d;
        let v = vec4<f32>(zb[row + r.x], zb[row + r.y], zb[row + r.z], zb[row + r.w]) - mean_b;
        let w = vec4<f32>(za[row + c.x], za[row + c.y], za[row + c.z], za[row + c.w]) - mean_a;
        {% for j in range(4) %}
        sum{{ j }} += v.{{ xyzw[j] }} * w;
        {% endfor %}
        count += 1u;
        if (count % 64u == 0u) {
            {% for j in range(4) %}
            tile{{ j }} += sum{{ j }}; sum{{ j }} = vec4<f32>();
            {% endfor %}
        }
    }
    {% for j in range(4) %}
    tile{{ j }} += sum{{ j }};
    {% endfor %}
    {{ store_tile() }}
    {{ barrier() }}

    // The largest magnitude, row by row, is divided out before squaring.
    for (var k = lane; k < d; k += {{ threads }}u) {
        var largest = 0u;
        for (var l = 0u; l < d; l += 1u) { largest = max(largest, magnitude({{ cell("k * d + l") }})); }
        {{ cell("gram + k") }} = bitcast<f32>(largest);
    }
    {{ barrier() }}
    var peak_bits = 0u;
    for (var k = 0u; k < d; k += 1u) { peak_bits = max(peak_bits, magnitude({{ cell("gram + k") }})); }
    let finite = peak_bits < NOT_FINITE;
    // Subnormal evidence is none: it may be flushed to zero at any time.
    let some = finite && peak_bits >= 0x00800000u;
    let peak = select(1.0, bitcast<f32>(peak_bits), some);
    for (var k = lane; k < d; k += {{ threads }}u) {
        var squares = 0.0;
        for (var l = 0u; l < d; l += 1u) {
            let v = {{ cell("k * d + l") }} / peak;
            squares += v * v;
        }
        {{ cell("gram + d + k") }} = squares;
    }
    {{ barrier() }}
    var squares = 0.0;
    for (var k = 0u; k < d; k += 1u) { squares += {{ cell("gram + d + k") }}; }
    let scale = sqrt(f32(d)) / sqrt(select(1.0, squares, some));
    {% for j in range(4) %}
    tile{{ j }} = select(vec4<f32>(), tile{{ j }} / peak * scale, some);
    tile{{ j }} += select(vec4<f32>(), vec4<f32>(p.ridge), vec4<u32>(r0 + {{ j }}u) == vec4<u32>(c0, c0 + 1u, c0 + 2u, c0 + 3u));
    {% endfor %}
    {{ store_tile() }}
    {{ barrier() }}

    // sqrt(|M|_1 |M|_inf) bounds the largest singular value.
    for (var k = lane; k < d; k += {{ threads }}u) {
        var row = 0.0;
        var column = 0.0;
        for (var l = 0u; l < d; l += 1u) {
            row += abs({{ cell("k * d + l") }});
            column += abs({{ cell("l * d + k") }});
        }
        {{ cell("gram + k") }} = row;
        {{ cell("gram + d + k") }} = column;
    }
    {{ barrier() }}
    var most = vec2<f32>();
    for (var k = 0u; k < d; k += 1u) { most = max(most, vec2<f32>({{ cell("gram + k") }}, {{ cell("gram + d + k") }})); }
    let bound = sqrt(most.x) * sqrt(most.y);
    let evidence = finite && bound > 0.0;
    {% for j in range(4) %}
    tile{{ j }} = select(vec4<f32>(), tile{{ j }} / select(1.0, bound, evidence), evidence);
    {% endfor %}
    {{ store_tile() }}
    {{ barrier() }}

    for (var n = 0u; n < p.iterations; n += 1u) {
        {% for j in range(4) %}
        var g{{ j }} = vec4<f32>();
        var y{{ j }} = vec4<f32>();
        {% endfor %}
        for (var k = 0u; k < d; k += 1u) {
            let row = x + k * d;
            let v = {{ four("row", "r") }};
            let w = {{ four("row", "c") }};
            {% for j in range(4) %}
            g{{ j }} += v.{{ xyzw[j] }} * w;
            {% endfor %}
        }
        {% for j in range(4) %}{% for k in range(4) %}
        if (own && r0 + {{ j }}u < d && c0 + {{ k }}u < d) { {{ cell("gram + at + " ~ j ~ "u * d + " ~ k ~ "u") }} = g{{ j }}.{{ xyzw[k] }}; }
        {% endfor %}{% endfor %}
        {{ barrier() }}
        for (var k = 0u; k < d; k += 1u) {
            let row = gram + k * d;
            let w = {{ four("row", "c") }};
            {% for j in range(4) %}
            y{{ j }} += {{ cell("r." ~ xyzw[j] ~ " * d + k") }} * w;
            {% endfor %}
        }
        {{ barrier() }}
        {% for j in range(4) %}
        tile{{ j }} = 1.5 * tile{{ j }} - 0.5 * y{{ j }};
        {% endfor %}
        {{ store_tile() }}
        {{ barrier() }}
    }

    {% for j in range(4) %}{% for k in range(4) %}
    if (own && r0 + {{ j }}u < d && c0 + {{ k }}u < d) {
        let v = select(select(0.0, 1.0, r0 + {{ j }}u == c0 + {{ k }}u), tile{{ j }}.{{ xyzw[k] }}, evidence);
        let i = at + {{ j }}u * d + {{ k }}u;
        if (solve == 2u) { omega[p.out_first + b * d * d + i] = v; } else { folds[fold + i] = v; }
    }
    {% endfor %}{% endfor %}
}

{% else %}
var<workgroup> folded: array<vec2<f32>, {{ threads }}>;

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let b = wid.x + wid.y * nwg.x;
    if (b >= p.rows) { return; }
    let d = p.d;
    // (residual, baseline) of this thread's entries.
    var total = vec2<f32>();
    var stretch = vec2<f32>();
    var count = 0u;
    for (var e = lane; e < p.observations * d; e += {{ threads }}u) {
        let i = e / d;
        let c = e % d;
        // Even observations are scored by the rotation of the odd ones, and the other way round.
        let fold = (b * 2u + 1u - i % 2u) * (d * d + 2u * d);
        let mean_a = fold + d * d;
        let mean_b = mean_a + d;
        let row = p.first + (b * p.observations + i) * d;
        var four = vec4<f32>();
        let whole = d / 4u * 4u;
        for (var r = 0u; r < whole; r += 4u) {
            let v = vec4<f32>({% for k in range(4) %}zb[row + r + {{ k }}u] - folds[mean_b + r + {{ k }}u]{% if k < 3 %}, {% endif %}{% endfor %});
            let at = fold + r * d + c;
            four += v * vec4<f32>(folds[at], folds[at + d], folds[at + 2u * d], folds[at + 3u * d]);
        }
        var rotated = (four.x + four.y) + (four.z + four.w);
        for (var r = whole; r < d; r += 1u) {
            rotated += (zb[row + r] - folds[mean_b + r]) * folds[fold + r * d + c];
        }
        let a = za[row + c] - folds[mean_a + c];
        let off = vec2<f32>(rotated, zb[row + c] - folds[mean_b + c]) - a;
        stretch += off * off;
        count += 1u;
        if (count % 64u == 0u) { total += stretch; stretch = vec2<f32>(); }
    }
    folded[lane] = total + stretch;
    workgroupBarrier();
    for (var width = {{ threads // 2 }}u; width > 0u; width /= 2u) {
        if (lane < width) { folded[lane] += folded[lane + width]; }
        workgroupBarrier();
    }
    if (lane == 0u) {
        let sums = folded[0];
        var w = 0.0;
        if (p.observations > 1u && sums.y > 0.0 && magnitude(sums.x) < NOT_FINITE && magnitude(sums.y) < NOT_FINITE) {
            w = clamp(1.0 - sums.x / sums.y, 0.0, 1.0);
        }
        strength[p.out_first + b] = w;
    }
}
{% endif %}
