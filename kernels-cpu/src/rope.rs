//! Rotary position embedding (Su et al. 2021) from tables of cosines and sines.

use crate::threads::par_rows_mut;

/// Which two elements of a head form the pair that pair number i rotates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// (2i, 2i + 1), as in the paper and GPT-J.
    Interleaved,
    /// (i, i + rot/2), as in GPT-NeoX and Llama.
    HalfSplit,
}

crate::multiversion! {
    /// Rotates the heads of one position.
    fn rotate_interleaved<V>(x: &[f32], d: usize, cos: &[f32], sin: &[f32], sign: f32, y: &mut [f32]) {
        let rot = 2 * cos.len();
        for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
            for (((x, y), &c), &s) in x.chunks_exact(2).zip(y.chunks_exact_mut(2)).zip(cos).zip(sin) {
                let (a, b, s) = (x[0], x[1], sign * s);
                y[0] = V::fma(a, c, -(b * s));
                y[1] = V::fma(b, c, a * s);
            }
            y[rot..].copy_from_slice(&x[rot..]);
        }
    }

    /// Rotates the heads of one position.
    fn rotate_halves<V>(x: &[f32], d: usize, cos: &[f32], sin: &[f32], sign: f32, y: &mut [f32]) {
        let half = cos.len();
        for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
            let (x_low, x_high) = x[..2 * half].split_at(half);
            let (y_rotated, y_rest) = y.split_at_mut(2 * half);
            let (y_low, y_high) = y_rotated.split_at_mut(half);
            let pairs = x_low.iter().zip(x_high).zip(y_low).zip(y_high);
            for (((((&a, &b), y_low), y_high), &c), &s) in pairs.zip(cos).zip(sin) {
                let s = sign * s;
                *y_low = V::fma(a, c, -(b * s));
                *y_high = V::fma(b, c, a * s);
            }
            y_rest.copy_from_slice(&x[2 * half..]);
        }
    }
}

/// Rotates the first `rot` elements of every head of `x`, shaped [batch, time, heads, d], into `y`; the rest is copied. Time step t is at position
/// `offset + t`, whose angles are row `offset + t` of `cos` and `sin`, each [positions, rot/2]. With `inverse` it rotates back, which is also the
/// gradient.
///
/// # Panics
/// If a slice does not have the size of its shape, `rot` is odd or beyond `d`, or a position is not in the tables.
pub fn rope(
    x: &[f32],
    batch: usize,
    time: usize,
    heads: usize,
    d: usize,
    rot: usize,
    cos: &[f32],
    sin: &[f32],
    offset: usize,
    layout: Layout,
    inverse: bool,
    y: &mut [f32],
) {
    assert!(x.len() == batch * time * heads * d && y.len() == x.len(), "x and y are [{batch}, {time}, {heads}, {d}]");
    assert!(rot.is_multiple_of(2) && rot <= d, "{rot} rotated elements of {d}");
    let half = rot / 2;
    assert!(
        cos.len() >= (offset + time) * half && sin.len() >= (offset + time) * half,
        "tables cover {time} positions from {offset}"
    );
    let sign = if inverse { -1.0 } else { 1.0 };
    let row = heads * d;
    par_rows_mut(y, row, 2 * row, |first, y| {
        for (i, y) in y.chunks_exact_mut(row).enumerate() {
            let x = &x[(first + i) * row..][..row];
            let at = (offset + (first + i) % time) * half;
            let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
            match layout {
                Layout::Interleaved => rotate_interleaved(x, d, cos, sin, sign, y),
                Layout::HalfSplit => rotate_halves(x, d, cos, sin, sign, y),
            }
        }
    });
}

/// The tables of the standard frequencies: row p, column i holds the cosine (sine) of p base^(-2i/rot), computed in `f64`.
pub fn tables(positions: usize, rot: usize, base: f64) -> (Vec<f32>, Vec<f32>) {
    let angle = |p: usize, i: usize| p as f64 * base.powf(-2.0 * i as f64 / rot as f64);
    let fill =
        |f: fn(f64) -> f64| (0..positions).flat_map(|p| (0..rot / 2).map(move |i| f(angle(p, i)) as f32)).collect();
    (fill(f64::cos), fill(f64::sin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_agree_with_f64_and_the_inverse_undoes_them() {
        for (b, t, h, d, rot, offset) in [
            (1, 1, 1, 2, 2, 0),
            (2, 3, 5, 7, 4, 3),
            (1, 17, 2, 64, 64, 5),
            (3, 65, 4, 33, 32, 0),
            (2, 2, 2, 6, 0, 1),
            (0, 4, 1, 4, 2, 0),
        ] {
            let n = b * t * h * d;
            let x: Vec<f32> = (0..n).map(|i| ((i * 7919) % 1013) as f32 / 337.0 - 1.4).collect();
            let (cos, sin) = tables(offset + t, rot, 10_000.0);
            for layout in [Layout::Interleaved, Layout::HalfSplit] {
                let (mut y, mut back) = (vec![f32::NAN; n], vec![f32::NAN; n]);
                rope(&x, b, t, h, d, rot, &cos, &sin, offset, layout, false, &mut y);
                rope(&y, b, t, h, d, rot, &cos, &sin, offset, layout, true, &mut back);
                for row in 0..b * t * h {
                    let position = offset + row / h % t;
                    for i in 0..d {
                        let at = row * d;
                        let want = if i >= rot {
                            x[at + i] as f64
                        } else {
                            let (pair, low, first) = match layout {
                                Layout::Interleaved => (i / 2, i / 2 * 2, i % 2 == 0),
                                Layout::HalfSplit => (i % (rot / 2), i % (rot / 2), i < rot / 2),
                            };
                            let high = if layout == Layout::Interleaved { low + 1 } else { low + rot / 2 };
                            let angle = position as f64 * 10_000f64.powf(-2.0 * pair as f64 / rot as f64);
                            let (a, b) = (x[at + low] as f64, x[at + high] as f64);
                            if first { a * angle.cos() - b * angle.sin() } else { b * angle.cos() + a * angle.sin() }
                        };
                        // |x| < 2: two rounded table entries, two products, one sum
                        assert!((y[at + i] as f64 - want).abs() <= 2.0 * 5.0 * 2f64.powi(-24));
                        assert!((back[at + i] - x[at + i]).abs() <= 4.0 * 10.0 * 2f32.powi(-24));
                    }
                }
            }
        }
    }
}
