//! Layouts and products of every format against their definitions in `f64`.

use super::samples::random_rows;
use super::*;
use crate::blocks::NF4;
use crate::gemm::Activation;
use crate::polar::tests::noise;
use crate::threads::with_threads;

fn packings(rows: usize, columns: usize) -> Vec<Packing> {
    let both = |format| [Layout::Rows, Layout::Tiles].map(|layout| Packing::new(format, layout, rows, columns));
    Format::ALL.into_iter().flat_map(both).flatten().collect()
}

/// The packed matrix, and its values.
fn matrix(packing: &Packing, seed: u64) -> (Vec<u8>, Vec<f32>) {
    let rows = random_rows(packing.format, packing.rows, packing.columns, seed);
    let mut packed = vec![0xaa; packing.bytes()];
    pack(packing, &rows, &mut packed);
    let flat = Packing { layout: Layout::Rows, ..*packing };
    let mut values = vec![f32::NAN; packing.rows * packing.columns];
    unpack(&flat, &rows, &mut values);
    (packed, values)
}

#[test]
fn tiles_hold_the_same_numbers_and_give_the_rows_bytes_back() {
    for (rows, columns) in [(1, 32), (15, 64), (16, 96), (17, 256), (33, 128), (3, 5), (18, 131), (40, 512)] {
        for packing in packings(rows, columns) {
            let bytes = random_rows(packing.format, rows, columns, 7);
            let mut packed = vec![0xaa; packing.bytes()];
            pack(&packing, &bytes, &mut packed);
            let mut back = vec![0; bytes.len()];
            unpack_bytes(&packing, &packed, &mut back);
            assert_eq!(back, bytes, "{packing:?}");
            let (again, values) = matrix(&packing, 7);
            assert_eq!(again, packed);
            let mut unpacked = vec![f32::NAN; values.len()];
            unpack(&packing, &packed, &mut unpacked);
            assert!(unpacked.iter().zip(&values).all(|(a, b)| a == b), "{packing:?}");
        }
    }
}

#[test]
fn tiles_packed_piece_by_piece_are_those_packed_at_once() {
    for format in [Format::Q4_0, Format::Q5K] {
        packed_piece_by_piece(format);
    }
}

fn packed_piece_by_piece(format: Format) {
    let packing = Packing::new(format, Layout::Tiles, 50, 256).unwrap();
    let rows = random_rows(format, 50, 256, 3);
    let mut whole = vec![0; packing.bytes()];
    pack(&packing, &rows, &mut whole);
    let (row, tile) = (packing.row_bytes(), packing.tile_bytes());
    let mut pieces = vec![1; packing.bytes()];
    for first in [0, 1, 3] {
        let count = [1, 2, 1][[0, 1, 3].iter().position(|f| *f == first).unwrap()];
        let end = packing.rows.min((first + count) * TILE_ROWS);
        let part = &rows[first * TILE_ROWS * row..end * row];
        pack_tiles(&packing, first, part, &mut pieces[first * tile..(first + count) * tile]);
    }
    assert_eq!(pieces, whole);
}

#[test]
fn int4_groups_of_32_have_the_bytes_of_q4_0() {
    let bytes = random_rows(Format::Q4_0, 3, 64, 5);
    let values = [Format::Q4_0, Format::Int4Group(32)].map(|format| {
        let packing = Packing::new(format, Layout::Rows, 3, 64).unwrap();
        let mut values = vec![0.0; 3 * 64];
        unpack(&packing, &bytes, &mut values);
        values
    });
    assert_eq!(values[0], values[1]);
    assert_eq!(layout::levels(Format::Nf4), NF4);
}

/// The largest error of a product over what its roundings may come to.
fn worst(packing: &Packing, activations: Activations, m: usize) -> f64 {
    let (n, k) = (packing.rows, packing.columns);
    let (packed, values) = matrix(packing, 11);
    let x = noise(m * k, 5);
    let mut y = vec![f32::NAN; m * n];
    linear(packing, activations, m, &x, &packed, &mut y, Epilogue::default());
    let mut used = x.clone();
    if activations == Activations::Int8 {
        round_rows(k, &x, &mut used);
    }
    let mut worst = 0.0f64;
    for i in 0..m {
        for j in 0..n {
            let terms = || (0..k).map(|l| f64::from(used[i * k + l]) * f64::from(values[j * k + l]));
            let (exact, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            let error = (f64::from(y[i * n + j]) - exact).abs();
            let bound = (k as f64 / 16.0 + 16.0) * 2f64.powi(-24) * size + f64::from(f32::MIN_POSITIVE);
            worst = worst.max(if error.is_finite() { error / bound } else { f64::INFINITY });
        }
    }
    worst
}

#[test]
fn products_agree_with_f64_for_every_format_layout_and_number_of_rows() {
    for (n, k) in [(1, 32), (15, 64), (17, 96), (33, 256), (16, 512), (37, 131), (5, 3)] {
        for packing in packings(n, k) {
            for activations in [Activations::F32, Activations::Int8] {
                for m in [1, 2, 3, 4, 5, 7, 8, 9, 33] {
                    let worst = worst(&packing, activations, m);
                    assert!(worst <= 1.0, "{packing:?} {activations:?} m = {m}: {worst} of the bound");
                }
            }
        }
    }
}

#[test]
fn results_are_the_same_bits_for_any_number_of_threads() {
    for format in [Format::Q8_0, Format::Q4_0, Format::Q6K, Format::Q4K, Format::F16] {
        let packing = Packing::fastest_for_int8(format, 500, 512).unwrap();
        let (packed, _) = matrix(&packing, 1);
        for (activations, m) in [(Activations::F32, 3), (Activations::Int8, 20)] {
            let x = noise(m * 512, 2);
            let run = |threads| {
                let mut y = vec![f32::NAN; m * 500];
                with_threads(threads, || linear(&packing, activations, m, &x, &packed, &mut y, Epilogue::default()));
                y
            };
            assert_eq!(run(1), run(3), "{format}");
        }
    }
}

#[test]
fn the_epilogue_follows_the_product() {
    let (m, n, k) = (3, 19, 64);
    let (bias, residual) = (noise(n, 8), noise(m * n, 9));
    let x = noise(m * k, 4);
    for packing in packings(n, k) {
        let (packed, _) = matrix(&packing, 2);
        let epilogue = Epilogue {
            bias: Some((&bias[..]).into()),
            activation: Activation::Relu,
            residual: Some((&residual[..]).into()),
        };
        let (mut plain, mut with) = (vec![0.0; m * n], vec![0.0; m * n]);
        linear(&packing, Activations::F32, m, &x, &packed, &mut plain, Epilogue::default());
        linear(&packing, Activations::F32, m, &x, &packed, &mut with, epilogue);
        for (i, (p, w)) in plain.iter().zip(&with).enumerate() {
            let want = (p + bias[i % n]).max(0.0) + residual[i];
            assert!((w - want).abs() <= 4.0 * f32::EPSILON * (1.0 + want.abs()), "{packing:?} {i}");
        }
    }
}

#[test]
fn blocks_of_zeros_and_of_the_greatest_numbers_stay_what_they_are() {
    let mut x = vec![0.0f32; 3 * 64];
    x[64..96].fill(3e38);
    x[64] = -3e38;
    x[128] = 1e-41;
    let mut rounded = vec![f32::NAN; x.len()];
    round_rows(64, &x, &mut rounded);
    assert!(rounded[..64].iter().all(|r| *r == 0.0));
    assert!(rounded[64..96].iter().zip(&x[64..]).all(|(r, x)| (r / x - 1.0).abs() < 1e-6));
    assert!(rounded[96..].iter().all(|r| *r == 0.0));
    // Ties go to even.
    let mut rounded = [0.0; 4];
    round_rows(4, &[127.0, 0.5, 1.5, -2.5], &mut rounded);
    assert_eq!(rounded, [127.0, 0.0, 2.0, -2.0]);
}

#[test]
fn ids_outside_the_matrix_are_named_and_packings_that_do_not_fit_refused() {
    let packing = Packing::fastest(Format::Q8_0, 5, 32).unwrap();
    let (packed, values) = matrix(&packing, 3);
    let mut out = vec![0.0; 3 * 32];
    gather_rows(&packing, &packed, &[4, 0, 4], &mut out).unwrap();
    assert_eq!(out[..32], values[4 * 32..]);
    assert_eq!(out[32..64], values[..32]);
    let error = gather_rows(&packing, &packed, &[0, 5], &mut out[..64]).unwrap_err();
    assert_eq!((error.position, error.value, error.limit), (1, 5, 5));
    assert!(Packing::new(Format::Q8_0, Layout::Rows, 5, 33).is_err());
    assert!(Packing::new(Format::Q2K, Layout::Tiles, 5, 256).unwrap_err().contains("use rows"));
    assert!(Packing::new(Format::F32, Layout::Rows, 5, 0).is_err());
    assert!(Packing::new(Format::F32, Layout::Rows, usize::MAX, 64).is_err());
}
