// Rows rounded to int8 in blocks of 32 with a scale each, and back to f32: one invocation a block.
struct Params { count: u32, columns: u32, blocks: u32 }
@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (i >= p.count) { return; }
    let row = i / p.blocks;
    let first = row * p.columns + (i - row * p.blocks) * 32u;
    let end = min(first + 32u, (row + 1u) * p.columns);
    var most = 0.0;
    for (var k = first; k < end; k += 1u) { most = max(most, abs(x[k])); }
    var scale = most / 127.0;
    var inverse = 0.0;
    if (scale >= 1.1754943508e-38) { inverse = 1.0 / scale; } else { scale = 0.0; }
    // round() takes ties to even.
    for (var k = first; k < end; k += 1u) { y[k] = scale * round(clamp(x[k] * inverse, -127.0, 127.0)); }
}
