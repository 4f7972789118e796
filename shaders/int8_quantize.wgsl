// int8 values from f32 and scales; one invocation a word of four. Rows of the result are `stride` bytes apart; bytes beyond a row
// are 0.
struct Params { n: u32, columns: u32, group: u32, groups: u32, stride: u32 }
@group(0) @binding(0) var<storage, read_write> q: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<uniform> p: Params;

fn value(i: u32) -> u32 {
    let row = i / p.stride;
    let column = i - row * p.stride;
    if (i >= p.n || column >= p.columns) { return 0u; }
    let scale = scales[row * p.groups + column / p.group];
    if (scale == 0.0) { return 0u; }
    let inverse = 1.0 / scale;
    // round() takes ties to even.
    return bitcast<u32>(i32(round(clamp(x[row * p.columns + column] * inverse, -127.0, 127.0)))) & 255u;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let word = gid.x + gid.y * nwg.x * 64u;
    let i = word * 4u;
    if (i >= p.n) { return; }
    q[word] = value(i) | (value(i + 1u) << 8u) | (value(i + 2u) << 16u) | (value(i + 3u) << 24u);
}
