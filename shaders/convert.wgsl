// Between f32 and a 16-bit type (half: "bf16" or "f16"), two elements an invocation; `narrow`: to 16 bits.
struct Params { n: u32 }
{% if narrow %}
@group(0) @binding(0) var<storage, read> wide: array<f32>;
@group(0) @binding(1) var<storage, read_write> words: array<u32>;
{% else %}
@group(0) @binding(0) var<storage, read> words: array<u32>;
@group(0) @binding(1) var<storage, read_write> wide: array<f32>;
{% endif %}
@group(0) @binding(2) var<uniform> p: Params;
{% include "halves.wgsl" %}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {
    let i = gid.x + gid.y * nwg.x * 64u;
    if (2u * i >= p.n) { return; }
    let both = 2u * i + 1u < p.n;
    {% if narrow %}
    var v = vec2<f32>(wide[2u * i], 0.0);
    if (both) { v.y = wide[2u * i + 1u]; }
    words[i] = pack_{{ half }}(v);
    {% else %}
    let v = unpack_{{ half }}(words[i]);
    wide[2u * i] = v.x;
    if (both) { wide[2u * i + 1u] = v.y; }
    {% endif %}
}
