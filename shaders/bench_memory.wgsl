// Traffic. Teams of `team` neighbouring invocations go along the arrays in lines of as many vec4s: what a team reads starts in a place
// of its own and goes on through the whole of the array (mask + 1 vec4s, a power of two), what it writes stays in its own block of
// lines (block, a power of two).
struct Params { mask: u32, rounds: u32, block: u32, scale: f32 }
{% set reads = access != "write" %}
@group(0) @binding(0) var<storage, read_write> a: array<vec4<f32>>;
{%- if access == "triad" %}
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> c: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> p: Params;
{%- elif reads %}
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> p: Params;
{%- else %}
@group(0) @binding(1) var<uniform> p: Params;
{%- endif %}

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let start = id.x / {{ team }}u * p.block * {{ team }}u + id.x % {{ team }}u;
{%- if access == "read" %}
    var s0 = vec4<f32>(0.0);
    var s1 = s0;
    var s2 = s0;
    var s3 = s0;
    for (var r = 0u; r < p.rounds; r += 4u) {
        let i = start + r * {{ team }}u;
        s0 += b[i & p.mask];
        s1 += b[(i + {{ team }}u) & p.mask];
        s2 += b[(i + {{ 2 * team }}u) & p.mask];
        s3 += b[(i + {{ 3 * team }}u) & p.mask];
    }
    let sum = s0 + s1 + s2 + s3;
    // Never so, but only the values tell.
    if (sum.x == 1.2345e30) {
        a[0] = sum;
    }
{%- else %}
    for (var r = 0u; r < p.rounds; r++) {
        let at = start + (r & (p.block - 1u)) * {{ team }}u;
{%- if access == "write" %}
        a[at] = vec4<f32>(p.scale + f32(r));
{%- elif access == "copy" %}
        a[at] = b[at];
{%- elif access == "triad" %}
        a[at] = b[at] + p.scale * c[at];
{%- else %}
        a[at] = a[at] + p.scale * b[at];
{%- endif %}
    }
{%- endif %}
}
