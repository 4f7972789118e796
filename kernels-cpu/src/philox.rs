//! Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A number depends only on
//! (key, counter), so every executor draws the same bits in any order.
//!
//! # The dropout stream, exactly (shaders reproduce these bits)
//! - key = `seed` (two words); counter for elements 4j .. 4j+3 = [low 32 bits of j, high 32 bits of j, `stream`, `step`].
//! - Element i takes word `i % 4` of the block of `j = i / 4`.
//! - Its uniform number is `(word >> 8) * 2^-24`, in [0, 1). It is kept iff uniform >= p (as f32), and is then multiplied by the f32
//!   `1.0 / (1.0 - p)`; else the result is 0.
//!
//! # The initialisation stream
//! [`fill_normal`] uses key = [low, high word of the seed] and counter [j low, j high, `stream`, [`INIT_STEP`]].

use crate::threads::{par_rows_mut, worth_threads};

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// The last counter word of the initialisation stream; training steps stay below it.
pub const INIT_STEP: u32 = u32::MAX;

#[inline(always)]
fn mul_hi_lo(a: u32, b: u32) -> (u32, u32) {
    let p = a as u64 * b as u64;
    ((p >> 32) as u32, p as u32)
}

/// Ten rounds: four random words for one key and counter.
#[inline(always)]
pub fn philox4x32(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let ([mut k0, mut k1], [mut c0, mut c1, mut c2, mut c3]) = (key, counter);
    for _ in 0..10 {
        let (hi0, lo0) = mul_hi_lo(M0, c0);
        let (hi1, lo1) = mul_hi_lo(M1, c2);
        (c0, c1, c2, c3) = (hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0);
        k0 = k0.wrapping_add(W0);
        k1 = k1.wrapping_add(W1);
    }
    [c0, c1, c2, c3]
}

/// The uniform number in [0, 1) of a word: its 24 high bits, times 2^-24 (exact in `f32`).
#[inline(always)]
pub fn uniform_f32(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Standard normal numbers by Box-Muller in `f64`, rounded to `f32`: words (a, b) of a block, then (c, d), give the pair
/// r cos t, r sin t with r = sqrt(-2 ln((a + 0.5) / 2^32)) and t = 2 pi b / 2^32.
pub fn fill_normal(seed: u64, stream: u32, out: &mut [f32]) {
    let key = [seed as u32, (seed >> 32) as u32];
    let fill = |first: usize, out: &mut [f32]| {
        for (j, out) in out.chunks_mut(4).enumerate() {
            let j = first + j;
            let words = philox4x32(key, [j as u32, (j as u64 >> 32) as u32, stream, INIT_STEP]);
            for (pair, out) in words.chunks_exact(2).zip(out.chunks_mut(2)) {
                let r = (-2.0 * ((pair[0] as f64 + 0.5) / 4_294_967_296.0).ln()).sqrt();
                let (sin, cos) = (std::f64::consts::TAU * pair[1] as f64 / 4_294_967_296.0).sin_cos();
                for (out, v) in out.iter_mut().zip([r * cos, r * sin]) {
                    *out = v as f32;
                }
            }
        }
    };
    let whole = out.len() / 4 * 4;
    let (blocks, tail) = out.split_at_mut(whole);
    par_rows_mut(blocks, 4, 200, fill);
    fill(whole / 4, tail);
}

/// Philox blocks computed side by side: 256 elements.
const SIDE: usize = 64;

crate::multiversion! {
    /// Elements 4 * first_block .. of the dropout stream.
    fn dropout_blocks<V>(x: &[f32], p: f32, seed: [u32; 2], stream: u32, step: u32, first_block: u64, y: &mut [f32]) {
        let scale = 1.0 / (1.0 - p);
        let mut factors = [0.0f32; 4 * SIDE];
        for (i, (x, y)) in x.chunks(4 * SIDE).zip(y.chunks_mut(4 * SIDE)).enumerate() {
            let first = first_block + (i * SIDE) as u64;
            let mut words = [[0u32; SIDE]; 4];
            let [w0, w1, w2, w3] = &mut words;
            for l in 0..SIDE {
                let j = first + l as u64;
                let block = philox4x32(seed, [j as u32, (j >> 32) as u32, stream, step]);
                (w0[l], w1[l], w2[l], w3[l]) = (block[0], block[1], block[2], block[3]);
            }
            for l in 0..SIDE {
                for w in 0..4 {
                    factors[4 * l + w] = if uniform_f32(words[w][l]) >= p { scale } else { 0.0 };
                }
            }
            for ((y, &x), &f) in y.iter_mut().zip(x).zip(&factors) {
                *y = if f != 0.0 { x * f } else { 0.0 };
            }
        }
    }
}

/// Inverted dropout: `y[i] = x[i] / (1 - p)` where element `i` is kept, else 0 (see the head of this file for which is kept). The gradient is the same function of
/// the gradient. `p` is a probability; with 0 `y` is `x`, with 1 all is dropped.
pub fn dropout(x: &[f32], p: f32, seed: [u32; 2], stream: u32, step: u32, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "x and y have one length");
    if !worth_threads(x.len() * 8) {
        return dropout_blocks(x, p, seed, stream, step, 0, y);
    }
    // rows of whole blocks, then what is left
    let row = 4 * SIDE;
    let whole = x.len() / row * row;
    let (body, tail) = y.split_at_mut(whole);
    par_rows_mut(body, row, 8 * row, |first, y| {
        dropout_blocks(&x[first * row..][..y.len()], p, seed, stream, step, (first * SIDE) as u64, y);
    });
    dropout_blocks(&x[whole..], p, seed, stream, step, (whole / 4) as u64, tail);
}

/// The stream of random numbers that belongs to a name (FNV-1a, 32 bits): each weight, dropout site and sampler has its own.
pub fn stream(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ b as u32).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::with_threads;

    #[test]
    fn known_answers_of_random123() {
        assert_eq!(philox4x32([0; 2], [0; 4]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox4x32([u32::MAX; 2], [u32::MAX; 4]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let counter = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        assert_eq!(philox4x32([0xa4093822, 0x299f31d0], counter), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    #[test]
    fn dropout_follows_the_documented_stream_for_any_number_of_threads() {
        for n in [0usize, 1, 3, 4, 5, 63, 64, 65, 257, 40_003] {
            let x: Vec<f32> = (0..n).map(|i| i as f32 - 7.5).collect();
            let want: Vec<f32> = (0..n)
                .map(|i| {
                    let j = (i / 4) as u64;
                    let word = philox4x32([11, 22], [j as u32, (j >> 32) as u32, 3, 44])[i % 4];
                    if uniform_f32(word) >= 0.3 { x[i] * (1.0 / (1.0 - 0.3f32)) } else { 0.0 }
                })
                .collect();
            for threads in [1, 2, 3] {
                let mut y = vec![f32::NAN; n];
                with_threads(threads, || dropout(&x, 0.3, [11, 22], 3, 44, &mut y));
                assert_eq!(y, want, "n = {n}");
            }
        }
    }

    #[test]
    fn dropout_keeps_the_right_share_and_the_extremes_are_exact() {
        let n = 100_000;
        let (x, mut y) = (vec![1.0f32; n], vec![0.0; n]);
        dropout(&x, 0.2, [1, 2], 0, 0, &mut y);
        let kept = y.iter().filter(|&&v| v != 0.0).count() as f64;
        // five standard deviations of a binomial
        assert!((kept - 0.8 * n as f64).abs() < 5.0 * (n as f64 * 0.16).sqrt());
        dropout(&x, 0.0, [1, 2], 0, 0, &mut y);
        assert_eq!(x, y);
        dropout(&x, 1.0, [1, 2], 0, 0, &mut y);
        assert!(y.iter().all(|&v| v == 0.0));
    }

    #[test]
    fn normals_have_the_right_moments_and_prefixes_agree() {
        let n = 200_001;
        let mut x = vec![0.0; n];
        fill_normal(42, 7, &mut x);
        let moment = |k: i32| x.iter().map(|&v| (v as f64).powi(k)).sum::<f64>() / n as f64;
        // five standard errors: variances of x, x^2, x^3, x^4 are 1, 2, 15, 96
        for (k, want, variance) in [(1, 0.0, 1.0f64), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            assert!((moment(k) - want).abs() < 5.0 * (variance / n as f64).sqrt(), "moment {k}: {}", moment(k));
        }
        let mut short = vec![0.0; 1003];
        fill_normal(42, 7, &mut short);
        assert_eq!(short, x[..1003]);
        fill_normal(42, 8, &mut short);
        assert_ne!(short, x[..1003]);
    }

    #[test]
    fn uniform_is_below_one() {
        assert_eq!(uniform_f32(u32::MAX), 1.0 - 1.0 / 16_777_216.0);
        assert_eq!(uniform_f32(255), 0.0);
    }
}
