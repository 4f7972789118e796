// One step of gradient descent with momentum in place, the same expressions as kernels-cpu's optim.rs.
struct Params { n: u32, momentum: f32, keep: f32, nesterov: f32, decay: f32 }
@group(0) @binding(0) var<storage, read_write> theta: array<{{ T }}>;
@group(0) @binding(1) var<storage, read> gradient: array<{{ T }}>;
@group(0) @binding(2) var<storage, read_write> velocity: array<{{ T }}>;
// Learning rate, factor of the weight decay.
@group(0) @binding(3) var<storage, read> hyper: array<f32>;
@group(0) @binding(4) var<storage, read> grad_scale: array<f32>;
@group(0) @binding(5) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (i >= p.n) { return; }
    // A negative scale: the gradient is not finite, leave everything as it was.
    if (grad_scale[0] < 0.0) { return; }
    let g = gradient[i] * grad_scale[0] + p.decay * hyper[1] * theta[i];
    let v = p.momentum * velocity[i] + p.keep * g;
    velocity[i] = v;
    let step = select(v, g + p.momentum * v, p.nesterov != 0.0);
    theta[i] = theta[i] - hyper[0] * step;
}
