// One AdamW step in place (Loshchilov and Hutter 2019, algorithm 2), the same expressions as kernels-cpu's optim.rs.
struct Params { n: u32, beta1: f32, beta2: f32, eps: f32, decay: f32, keep1: f32, keep2: f32 }
@group(0) @binding(0) var<storage, read_write> theta: array<{{ T }}>;
@group(0) @binding(1) var<storage, read> gradient: array<{{ T }}>;
@group(0) @binding(2) var<storage, read_write> first: array<{{ T }}>;
@group(0) @binding(3) var<storage, read_write> second: array<{{ T }}>;
// Learning rate, 1 / (1 - beta1^t), 1 / (1 - beta2^t), factor of the weight decay.
@group(0) @binding(4) var<storage, read> hyper: array<f32>;
@group(0) @binding(5) var<storage, read> grad_scale: array<f32>;
@group(0) @binding(6) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (i >= p.n) { return; }
    let rate = hyper[0];
    // A negative scale: the gradient is not finite, leave everything as it was.
    if (grad_scale[0] < 0.0) { return; }
    let g = gradient[i] * grad_scale[0];
    let m = first[i] + p.keep1 * (g - first[i]);
    let v = p.beta2 * second[i] + p.keep2 * g * g;
    first[i] = m;
    second[i] = v;
    let root = sqrt(v * hyper[2]) + p.eps;
    theta[i] = theta[i] * (1.0 - rate * (p.decay * hyper[3])) - rate * hyper[1] * m / root;
}
