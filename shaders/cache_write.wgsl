// New vectors [B, T, Hkv, D] into a cache [B, Hkv, S, D]: token t < count of a batch row into slot (start + t) % slots. f32 and f16: an
// invocation a unit (a quad, or one number); int8: {{ lanes }} a vector, for its scale is that of its greatest magnitude.
{% if store == "f16" %}{% include "halves.wgsl" %}{% endif %}
struct Params {
    count: u32,
    // The first (batch row, head) of the bound part of the cache; the first batch row of the bound part of new, and units before it.
    head: u32, batch: u32, ahead: u32,
    tokens: u32, kv_heads: u32, slots: u32,
}
{% set T = "vec4<f32>" if quads else "f32" %}
{% if store == "f32" %}
@group(0) @binding(0) var<storage, read_write> cache: array<{{ T }}>;
{% elif store == "f16" %}
@group(0) @binding(0) var<storage, read_write> cache: array<vec2<u32>>;
{% else %}
@group(0) @binding(0) var<storage, read_write> cache: array<u32>;
{% endif %}
@group(0) @binding(1) var<storage, read> new_values: array<{{ T }}>;
@group(0) @binding(2) var<storage, read> place: array<i32>;
{% if store == "i8" %}
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;
@group(0) @binding(4) var<uniform> p: Params;
{% else %}
@group(0) @binding(3) var<uniform> p: Params;
{% endif %}

// Of vector `n` of the dispatch, heads innermost so that neighbours read neighbours: units of new before it, the cache's vector, and
// whether it is there.
struct Way { from_unit: u32, vector: u32, there: bool }
fn way(n: u32, heads: u32) -> Way {
    let own = n % heads;
    let t = n / heads;
    let head = p.head + own;
    let b = head / p.kv_heads;
    let start = clamp(place[2u * b], 0, 1 << 30u);
    let slot = (u32(start) + t) % p.slots;
    let vector = ((b - p.batch) * p.tokens + t) * p.kv_heads + head % p.kv_heads;
    return Way(p.ahead + vector * {{ NV }}u, own * p.slots + slot, i32(t) < place[2u * b + 1u]);
}

{% if store != "i8" %}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (i >= p.count) { return; }
    let unit = i % {{ NV }}u;
    let w = way(i / {{ NV }}u, p.count / ({{ NV }}u * p.tokens));
    if (!w.there) { return; }
    let v = new_values[w.from_unit + unit];
    let to = w.vector * {{ NV }}u + unit;
    {% if store == "f16" %}
    cache[to] = vec2<u32>(pack_f16(v.xy), pack_f16(v.zw));
    {% else %}
    cache[to] = v;
    {% endif %}
}
{% else %}
fn magnitude(from_unit: u32, lane: u32) -> f32 {
    var most = 0.0;
    for (var k = lane; k < {{ NV }}u; k += {{ lanes }}u) {
        let v = abs(new_values[from_unit + k]);
        most = max(most, max(max(v.x, v.y), max(v.z, v.w)));
    }
    return most;
}

fn write(w: Way, most: f32, lane: u32) {
    let quotient = most / 127.0;
    let scale = select(0.0, quotient, quotient >= 1.1754943508e-38);
    let inverse = select(0.0, 1.0 / max(scale, 1.1754943508e-38), scale > 0.0);
    for (var k = lane; k < {{ NV }}u; k += {{ lanes }}u) {
        // round() takes ties to even.
        let v = vec4<i32>(round(clamp(new_values[w.from_unit + k] * inverse, vec4<f32>(-127.0), vec4<f32>(127.0))));
        let q = bitcast<vec4<u32>>(v) & vec4<u32>(255u);
        cache[w.vector * {{ NV }}u + k] = q.x | (q.y << 8u) | (q.z << 16u) | (q.w << 24u);
    }
    if (lane == 0u) { scales[w.vector] = scale; }
}

{% if lanes > 1 %}
var<workgroup> found: array<f32, {{ lanes }}>;
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = wid.x + wid.y * nwg.x;
    if (i >= p.count) { return; }
    let w = way(i, p.count / p.tokens);
    found[lane] = magnitude(w.from_unit, lane);
    workgroupBarrier();
    for (var half = {{ lanes // 2 }}u; half > 0u; half >>= 1u) {
        if (lane < half) { found[lane] = max(found[lane], found[lane + half]); }
        workgroupBarrier();
    }
    if (w.there) { write(w, found[0], lane); }
}
{% else %}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (i >= p.count) { return; }
    let w = way(i, p.count / p.tokens);
    if (w.there) { write(w, magnitude(w.from_unit, 0u), 0u); }
}
{% endif %}
{% endif %}
