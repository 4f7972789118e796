// Products of int8 rows: a tile of 4 x 4 results by `slices` invocations. Integer sums of a group are exact; groups are added in
// f32. Rows of x are whole words, padded with zeros; rows of w lie at any byte.
struct Params { m: u32, n: u32, k: u32, stride: u32, ldc: u32, c_at: u32, group: u32, groups: u32, tiles_n: u32, count: u32 }
@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read> x_scales: array<f32>;
@group(0) @binding(3) var<storage, read> w: array<u32>;
@group(0) @binding(4) var<storage, read> w_scales: array<f32>;
@group(0) @binding(5) var<uniform> p: Params;

const SLICES = {{ slices }}u;
{% if slices > 1 %}var<workgroup> sums: array<vec4<f32>, 64>;{% endif %}

fn dot4(a: u32, b: u32) -> i32 {
    {% if packed %}
    return dot4I8Packed(a, b);
    {% else %}
    let i = bitcast<i32>(a);
    let j = bitcast<i32>(b);
    return extractBits(i, 0u, 8u) * extractBits(j, 0u, 8u) + extractBits(i, 8u, 8u) * extractBits(j, 8u, 8u)
        + extractBits(i, 16u, 8u) * extractBits(j, 16u, 8u) + extractBits(i, 24u, 8u) * extractBits(j, 24u, 8u);
    {% endif %}
}

// Bytes i .. i + 3, which may lie in two words.
{% for name in ["x", "w"] %}
fn word_{{ name }}(i: u32) -> u32 {
    {% if aligned %}
    return {{ name }}[i >> 2u];
    {% else %}
    let shift = (i & 3u) * 8u;
    let next = min((i >> 2u) + 1u, arrayLength(&{{ name }}) - 1u);
    return select(({{ name }}[i >> 2u] >> shift) | ({{ name }}[next] << ((32u - shift) & 31u)), {{ name }}[i >> 2u], shift == 0u);
    {% endif %}
}
{% endfor %}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let tile = (wid.x + wid.y * nwg.x) * {{ 64 // slices }}u + local / SLICES;
    {% if slices == 1 %}if (tile >= p.count) { return; }{% endif %}
    let slice = local % SLICES;
    let row = tile / p.tiles_n * 4u;
    let column = tile % p.tiles_n * 4u;
    // Rows and columns beyond the edge read the last ones and are not stored.
    {% for i in range(4) %}let x{{ i }} = min(row + {{ i }}u, p.m - 1u) * p.stride;
    let w{{ i }} = min(column + {{ i }}u, p.n - 1u);
    var c{{ i }} = vec4<f32>(0.0);
    {% endfor %}
    for (var g = 0u; g < p.groups; g += 1u) {
        let end = min((g + 1u) * p.group, p.k);
        {% for i in range(4) %}var s{{ i }} = vec4<i32>(0);
        {% endfor %}
        for (var k = g * p.group + slice * 4u; k < end; k += SLICES * 4u) {
            {% if not aligned %}
            // Bytes of the next group or row count as zero.
            let keep = select(0xffffffffu, (1u << ((end - k) * 8u)) - 1u, end - k < 4u);
            {% endif %}
            {% for i in range(4) %}let a{{ i }} = word_x(x{{ i }} + k);
            let b{{ i }} = word_w(w{{ i }} * p.k + k){{ "" if aligned else " & keep" }};
            {% endfor %}
            {% for i in range(4) %}s{{ i }} += vec4<i32>(dot4(a{{ i }}, b0), dot4(a{{ i }}, b1), dot4(a{{ i }}, b2), dot4(a{{ i }}, b3));
            {% endfor %}
        }
        let scale = vec4<f32>(w_scales[w0 * p.groups + g], w_scales[w1 * p.groups + g], w_scales[w2 * p.groups + g], w_scales[w3 * p.groups + g]);
        {% for i in range(4) %}c{{ i }} += vec4<f32>(s{{ i }}) * scale;
        {% endfor %}
    }
    {% for i in range(4) %}
    {% if slices > 1 %}
    sums[local] = c{{ i }};
    workgroupBarrier();
    for (var half = SLICES / 2u; half > 0u; half >>= 1u) {
        if (slice < half) { sums[local] += sums[local + half]; }
        workgroupBarrier();
    }
    if (slice == 0u) { put(tile, row + {{ i }}u, column, sums[local]); }
    workgroupBarrier();
    {% else %}
    put(tile, row + {{ i }}u, column, c{{ i }});
    {% endif %}
    {% endfor %}
}

fn put(tile: u32, row: u32, column: u32, v: vec4<f32>) {
    if (tile >= p.count || row >= p.m) { return; }
    // Without terms nothing was quantised.
    let scale = select(x_scales[row], 0.0, p.k == 0u);
    let at = row * p.ldc + p.c_at + column;
    {% for j in range(4) %}if (column + {{ j }}u < p.n) { y[at + {{ j }}u] = v[{{ j }}] * scale; }
    {% endfor %}
}
