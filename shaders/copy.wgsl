// Copies a box of {{ rank }} axes between strided tensors of 32-bit words (W at a time). Strides and offsets count elements of type T;
// the last axis is the innermost of the destination.
struct Params {
    n: u32, src_start: u32, dst_start: u32,
    {% for k in range(rank) %}d{{ k }}: u32, s{{ k }}: u32, t{{ k }}: u32, {% endfor %}
}
@group(0) @binding(0) var<storage, read> src: array<{{ T }}>;
@group(0) @binding(1) var<storage, read_write> dst: array<{{ T }}>;
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let index = gid.x + gid.y * nwg.x * 64u;
    if (index >= p.n) { return; }
    var rest = index;
    var src_at = p.src_start;
    var dst_at = p.dst_start;
    {% for j in range(rank) %}{% set k = rank - 1 - j %}
    {% if k > 0 %}
    let q{{ k }} = rest / p.d{{ k }};
    let i{{ k }} = rest - q{{ k }} * p.d{{ k }};
    rest = q{{ k }};
    {% else %}
    let i0 = rest;
    {% endif %}
    src_at += i{{ k }} * p.s{{ k }};
    dst_at += i{{ k }} * p.t{{ k }};
    {% endfor %}
    dst[dst_at] = src[src_at];
}
