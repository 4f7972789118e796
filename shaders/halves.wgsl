// 16-bit floats in 32-bit words, two to a word, the first in the lower half. No device feature is needed. Results are rounded to
// the nearest, ties to even, which pack2x16float leaves open, as it does what becomes of values beyond the range: infinity here.
fn unpack_bf16(word: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}
fn bits_bf16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let rounded = (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
    // Rounding could carry a NaN into infinity.
    return select(rounded, (bits >> 16u) | 0x40u, (bits & 0x7fffffffu) > 0x7f800000u);
}
fn pack_bf16(v: vec2<f32>) -> u32 {
    return bits_bf16(v.x) | (bits_bf16(v.y) << 16u);
}
fn unpack_f16(word: u32) -> vec2<f32> {
    return unpack2x16float(word);
}
fn bits_f16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let size = bits & 0x7fffffffu;
    // The exponent's bias goes from 127 to 15; 13 bits are rounded away.
    let normal = (size + 0xc8000fffu + ((size >> 13u) & 1u)) >> 13u;
    // Below 2^-14 all values are multiples of 2^-24, half of which is one unit in the last place of 0.5.
    let small = bitcast<u32>(bitcast<f32>(size) + 0.5) - 0x3f000000u;
    let finite = select(normal, small, size < 0x38800000u);
    let special = select(0x7c00u, 0x7e00u, size > 0x7f800000u);
    return select(finite, special, size >= 0x47800000u) | ((bits >> 16u) & 0x8000u);
}
fn pack_f16(v: vec2<f32>) -> u32 {
    return bits_f16(v.x) | (bits_f16(v.y) << 16u);
}
