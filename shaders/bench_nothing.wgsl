// Does nothing: what a dispatch costs.
@group(0) @binding(0) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(1)
fn main() {
    if (arrayLength(&y) == 0u) {
        y[0] = vec4<f32>(0.0);
    }
}
