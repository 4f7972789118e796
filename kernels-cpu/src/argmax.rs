//! The place of the largest number.

use crate::register::with_register;
use crate::threads::par_rows_mut;
use crate::vector::{Vector, row_max};

/// For each of the rows of `x [rows, width]` the index of the largest of its first `limit` numbers: the smallest such index; -1 where one of
/// them is NaN.
///
/// # Panics
/// If `limit` is 0 or beyond `width`, or a slice does not have its shape's length.
pub fn argmax(x: &[f32], width: usize, limit: usize, out: &mut [i32]) {
    assert!((1..=width).contains(&limit), "argmax: the first {limit} of {width} numbers");
    assert_eq!(x.len(), out.len() * width, "argmax: x must be [rows, width]");
    par_rows_mut(out, 1, limit, |first, out| {
        for (i, out) in out.iter_mut().enumerate() {
            *out = row(&x[(first + i) * width..][..limit]).map_or(-1, |i| i as i32);
        }
    });
}

crate::multiversion! {
    fn row<V>(x: &[f32]) -> Option<usize> {
        // Numbers that are searched for the largest at a time, while they are near.
        const BLOCK: usize = 1024;
        let (mut best, mut at) = (f32::NEG_INFINITY, 0);
        for (n, block) in x.chunks(BLOCK).enumerate() {
            if block.iter().fold(false, |nan, v| nan | v.is_nan()) {
                return None;
            }
            let most = with_register!(V, numbers_max(block));
            if most > best {
                (best, at) = (most, n * BLOCK);
            }
        }
        x[at..].iter().position(|v| *v == best).map(|i| at + i)
    }
}

#[inline(always)]
fn numbers_max<R: Vector>(x: &[f32]) -> f32 {
    row_max::<R>(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(x: &[f32], limit: usize) -> i32 {
        let mut out = [-1];
        argmax(x, x.len(), limit, &mut out);
        out[0]
    }

    #[test]
    fn the_smaller_index_wins_a_tie_wherever_the_two_stand() {
        for n in [1, 2, 15, 16, 17, 64, 100, 1023, 1024, 1025, 5000] {
            for i in [0, n / 3, n / 2, n - 1] {
                let mut x: Vec<f32> = (0..n).map(|k| -1.0 - (k % 7) as f32).collect();
                (x[i], x[n - 1]) = (3.0, 3.0);
                assert_eq!(one(&x, n), i as i32, "{n} {i}");
                if i + 1 < n {
                    assert!(one(&x[..=i + 1], i + 1) == i as i32, "{n} {i}");
                }
            }
        }
    }

    #[test]
    fn only_the_first_limit_numbers_of_each_row_count() {
        let x: Vec<f32> = (0..3 * 40).map(|i| (i % 40) as f32 - 10.0).collect();
        let mut out = [0; 3];
        argmax(&x, 40, 33, &mut out);
        assert_eq!(out, [32; 3]);
    }

    #[test]
    fn one_nan_is_told_and_infinities_are_numbers() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        assert_eq!(one(&[nan, 1.0, 2.0], 3), -1);
        assert_eq!(one(&[1.0, 2.0, nan], 2), 1);
        assert_eq!(one(&[-inf, -inf], 2), 0);
        assert_eq!(one(&[0.0, inf, inf], 3), 1);
        let mut x = vec![-5.0; 3000];
        x[2000] = nan;
        assert_eq!(one(&x, 3000), -1);
        assert_eq!(one(&x, 2000), 0);
    }
}
