// Philox4x32-10 (Salmon et al. 2011): counter-based random words, the same bits as kernels-cpu's philox.rs.
fn philox_mul_hi(a: u32, b: u32) -> u32 {
    let al = a & 0xffffu; let ah = a >> 16u;
    let bl = b & 0xffffu; let bh = b >> 16u;
    let mid = ah * bl + ((al * bl) >> 16u);
    let mid2 = al * bh + (mid & 0xffffu);
    return ah * bh + (mid >> 16u) + (mid2 >> 16u);
}

fn philox(key_in: vec2<u32>, counter: vec4<u32>) -> vec4<u32> {
    var key = key_in;
    var c = counter;
    for (var round = 0u; round < 10u; round += 1u) {
        let hi0 = philox_mul_hi(0xD2511F53u, c.x); let lo0 = 0xD2511F53u * c.x;
        let hi1 = philox_mul_hi(0xCD9E8D57u, c.z); let lo1 = 0xCD9E8D57u * c.z;
        c = vec4<u32>(hi1 ^ c.y ^ key.x, lo1, hi0 ^ c.w ^ key.y, lo0);
        key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

// In [0, 1), 24 bits.
fn philox_uniform(word: u32) -> f32 {
    return f32(word >> 8u) * 5.9604644775390625e-8;
}
