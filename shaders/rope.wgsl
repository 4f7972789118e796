// Rotary embedding. A thread takes one unit of a head: {{ unit }}.
struct Params { units: u32, per_head: u32, heads: u32, time: u32, first: u32, pairs: u32, positions: u32, offset: i32, sign: f32 }
@group(0) @binding(0) var<storage, read> x: array<{{ T }}>;
@group(0) @binding(1) var<storage, read> cosines: array<{{ C }}>;
@group(0) @binding(2) var<storage, read> sines: array<{{ C }}>;
{% if source != "none" %}@group(0) @binding(3) var<storage, read> positions: array<i32>;{% endif %}
@group(0) @binding({{ 4 if source != "none" else 3 }}) var<storage, read_write> y: array<{{ T }}>;
@group(0) @binding({{ 5 if source != "none" else 4 }}) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (i >= p.units) { return; }
    let head = i / p.per_head;
    let unit = i - head * p.per_head;
    let token = p.first + head / p.heads;
    var position = p.offset + i32(token % p.time);
    {% if source == "offset" %}position += positions[0];{% elif source == "tokens" %}position = positions[token];{% endif %}
    // Positions are checked on the host; a wrong one must still not leave the tables.
    let row = u32(clamp(position, 0, i32(p.positions) - 1)) * p.pairs;
    {% if layout == "half" %}
    // Units 0 .. pairs rotate with their partner `pairs` further on, the rest is copied.
    let base = head * (p.per_head + p.pairs);
    if (unit >= p.pairs) {
        y[base + p.pairs + unit] = x[base + p.pairs + unit];
        return;
    }
    let c = cosines[row + unit];
    let s = p.sign * sines[row + unit];
    let a = x[base + unit];
    let b = x[base + p.pairs + unit];
    y[base + unit] = a * c - b * s;
    y[base + p.pairs + unit] = b * c + a * s;
    {% elif wide %}
    let v = x[i];
    if (unit >= p.pairs) {
        y[i] = v;
        return;
    }
    let c = cosines[row + unit];
    let s = p.sign * sines[row + unit];
    y[i] = vec4<f32>(v.x * c.x - v.y * s.x, v.y * c.x + v.x * s.x, v.z * c.y - v.w * s.y, v.w * c.y + v.z * s.y);
    {% else %}
    // Units 0 .. pairs rotate elements (2 unit, 2 unit + 1), the rest is copied.
    let base = head * (p.per_head + p.pairs);
    if (unit >= p.pairs) {
        y[base + p.pairs + unit] = x[base + p.pairs + unit];
        return;
    }
    let c = cosines[row + unit];
    let s = p.sign * sines[row + unit];
    let a = x[base + 2u * unit];
    let b = x[base + 2u * unit + 1u];
    y[base + 2u * unit] = a * c - b * s;
    y[base + 2u * unit + 1u] = b * c + a * s;
    {% endif %}
}
