// Reads workgroup memory: neighbouring invocations read neighbouring vec4s, each round those of other invocations.
struct Params { rounds: u32, scale: f32 }

@group(0) @binding(0) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(1) var<uniform> p: Params;

var<workgroup> tile: array<vec4<f32>, 512>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    tile[lane] = vec4<f32>(p.scale * f32(lane));
    tile[lane + 256u] = vec4<f32>(p.scale);
    workgroupBarrier();
    var s0 = vec4<f32>(0.0);
    var s1 = s0;
    var s2 = s0;
    var s3 = s0;
    for (var r = 0u; r < p.rounds; r += 4u) {
        s0 += tile[(lane + r * 32u) & 511u];
        s1 += tile[(lane + r * 32u + 32u) & 511u];
        s2 += tile[(lane + r * 32u + 64u) & 511u];
        s3 += tile[(lane + r * 32u + 96u) & 511u];
    }
    let sum = s0 + s1 + s2 + s3;
    if (sum.x == 1.2345e30) {
        y[0] = sum;
    }
}
