// Reads one float in every `stride`, neighbouring invocations that far apart.
struct Params { mask: u32, rounds: u32, invocations: u32, stride: u32 }

@group(0) @binding(0) var<storage, read_write> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    var i = id.x * p.stride;
    let step = p.invocations * p.stride;
    var sum = 0.0;
    for (var r = 0u; r < p.rounds; r++) {
        // Once round, the reads begin one place further on.
        sum += b[(i + i / (p.mask + 1u)) & p.mask];
        i += step;
    }
    if (sum == 1.2345e30) {
        a[0] = sum;
    }
}
