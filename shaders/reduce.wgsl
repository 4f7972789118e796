// One thread reduces one line of `length` elements, `inner` apart.
struct Params { lines: u32, length: u32, inner: u32 }
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let line = gid.x + gid.y * nwg.x * 64u;
    if (line >= p.lines) { return; }
    let start = (line / p.inner) * p.length * p.inner + line % p.inner;
    var total = 0.0;
    {% if kind in ["Max", "Min"] %}total = x[start];{% endif %}
    for (var l = 0u; l < p.length; l += 1u) {
        let v = x[start + l * p.inner];
        {% if kind == "Max" %}total = max(total, v);
        {% elif kind == "Min" %}total = min(total, v);
        {% elif kind == "SumSquares" %}total += v * v;
        {% else %}total += v;{% endif %}
    }
    {% if kind == "Mean" %}total /= f32(p.length);{% endif %}
    y[line] = total;
}
