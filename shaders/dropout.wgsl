// Inverted dropout; a thread takes the four elements of one Philox block.
{% include "philox.wgsl" %}
struct Params { n: u32, first: u32, stream: u32, p: f32, scale: f32 }
@group(0) @binding(0) var<storage, read> x: array<{{ T }}>;
// Low and high word of the seed, step.
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<{{ T }}>;
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (i >= (p.n + 3u) / 4u) { return; }
    // A buffer holds less than 2^32 elements, so the block's number has one word.
    let words = philox(vec2<u32>(state[0], state[1]), vec4<u32>(p.first + i, 0u, p.stream, state[2]));
    let u = vec4<f32>(words >> vec4<u32>(8u)) * 5.9604644775390625e-8;
    let keep = u >= vec4<f32>(p.p);
    {% if T == "f32" %}
    {% for c in range(4) %}
    if (4u * i + {{ c }}u < p.n) {
        let v = x[4u * i + {{ c }}u] * p.scale;
        y[4u * i + {{ c }}u] = select(0.0, v, keep[{{ c }}]);
    }
    {% endfor %}
    {% else %}
    y[i] = select(vec4<f32>(0.0), x[i] * p.scale, keep);
    {% endif %}
}
