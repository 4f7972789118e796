//! Stored formats against the `gguf` package, whose digests `blocks.py` beside this file prints, and the errors of narrowing.

use kernels_cpu::blocks::{Format, can_quantise, dequantise_row, dequantise_rows, quantise_row, quantise_rows};

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn random(seed: u64, i: u64) -> u64 {
    mix((i + 1).wrapping_mul(GOLDEN).wrapping_add(seed))
}

fn digest(values: impl Iterator<Item = u64>, first: u64) -> u64 {
    (first..).zip(values).fold(0, |sum, (i, v)| sum.wrapping_add(mix(v ^ i.wrapping_mul(GOLDEN))))
}

#[test]
fn every_scale_with_random_codes_is_widened_to_the_bits_of_gguf() {
    // the id that ggml has for the type seeds the generator
    let table = [
        (Format::F16, 1, 0, 0x656a2bebe6efb271),
        (Format::Bf16, 30, 0, 0xdc998cd6f6306aae),
        (Format::Q4_0, 2, 0, 0xa274c93746bf2876),
        (Format::Q4_1, 3, 0, 0x9e86eb330fafa9bb),
        (Format::Q5_0, 6, 0, 0x4aff799f4ebd182f),
        (Format::Q5_1, 7, 0, 0x9ed82fc3391861b1),
        (Format::Q8_0, 8, 0, 0x8a1317a847dd4aa8),
        (Format::Q2K, 10, 80, 0x38030ea442ab55b7),
        (Format::Q3K, 11, 108, 0xe3f6a9ca6ec949eb),
        (Format::Q4K, 12, 0, 0xc980d4228baf2e22),
        (Format::Q5K, 13, 0, 0x0aecf4f2318d402d),
        (Format::Q6K, 14, 208, 0x7d96040a8d8963ed),
    ];
    for (format, seed, scale_at, expected) in table {
        let len = format.block_len().unwrap();
        let size = format.row_bytes(len).unwrap();
        let words = size.div_ceil(8) as u64;
        let mut x = vec![0.0; len];
        let mut total = 0u64;
        for i in 0..65536u64 {
            let mut block: Vec<u8> = (0..words).flat_map(|w| random(seed, i * words + w).to_le_bytes()).collect();
            block.truncate(size);
            block[scale_at..scale_at + 2].copy_from_slice(&(i as u16).to_le_bytes());
            dequantise_row(format, &block, &mut x);
            let bits = x.iter().map(|x| if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() as u64 });
            total = total.wrapping_add(digest(bits, i * len as u64));
        }
        assert_eq!(total, expected, "{format}: {total:#018x}");
    }
}

/// Blocks of 32 of many sizes; every 16th is zero, and the next one has halves, whose rounding is a matter of ties.
fn numbers(blocks: usize) -> Vec<f32> {
    let mut x = Vec::with_capacity(32 * blocks);
    for b in 0..blocks {
        for i in 0..32 {
            let r = (random(1, (32 * b + i) as u64) as u32 >> 8) as i32 - (1 << 23);
            x.push(match b % 16 {
                0 => 0.0,
                1 => ((i % 17) as f32 - 8.0) / 2.0,
                _ => r as f32 * (-23f32).exp2() * ((b % 15) as f32 - 10.0).exp2(),
            });
        }
    }
    x
}

fn narrowed(format: Format, columns: usize, x: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut bytes = vec![0; x.len() / columns * format.row_bytes(columns).unwrap()];
    quantise_rows(format, columns, x, importance, &mut bytes).unwrap();
    bytes
}

fn widened(format: Format, columns: usize, bytes: &[u8]) -> Vec<f32> {
    let mut x = vec![0.0; bytes.len() / format.row_bytes(columns).unwrap() * columns];
    dequantise_rows(format, columns, bytes, &mut x);
    x
}

#[test]
fn simple_formats_are_narrowed_to_the_bytes_of_gguf() {
    let table = [
        (Format::F16, 0xb8dbf395335f8372),
        (Format::Bf16, 0x6e3baee9494e841b),
        (Format::Q4_0, 0x6778fec09c9e7aa2),
        (Format::Q4_1, 0x8cdffe2fb2d28218),
        (Format::Q5_0, 0xa9e0099ad1093021),
        (Format::Q5_1, 0xb16c59d321953e4a),
        (Format::Q8_0, 0x0ad6c9954fbb8f6b),
    ];
    let x = numbers(4096);
    for (format, expected) in table {
        let bytes = narrowed(format, 128, &x, None);
        let found = digest(bytes.iter().map(|&b| b as u64), 0);
        assert_eq!(found, expected, "{format}: {found:#018x}");
    }
}

/// Nearly normal numbers: sums of twelve uniform ones.
fn normal(n: usize, seed: u64) -> Vec<f32> {
    let uniform = |i: u64| (random(seed, i) >> 40) as f32 / (1u64 << 24) as f32;
    (0..n as u64).map(|i| (0..12).map(|k| uniform(12 * i + k)).sum::<f32>() - 6.0).collect()
}

/// Root of the weighted mean square error over that of the numbers.
fn relative_error(x: &[f32], y: &[f32], weight: impl Fn(usize) -> f32) -> f64 {
    let sum = |f: &dyn Fn(usize) -> f32| (0..x.len()).map(|i| (f(i) as f64).powi(2) * weight(i) as f64).sum::<f64>();
    (sum(&|i| x[i] - y[i]) / sum(&|i| x[i])).sqrt()
}

#[test]
fn errors_of_normal_numbers_are_what_the_bits_allow() {
    let x = normal(64 * 512, 7);
    // Measured, and a little room. llama.cpp (ggml 0.25.3) leaves 7.03e-2 of these numbers in Q4_K and 1.747e-2 in Q6_K.
    let table = [
        (Format::F16, 2.1e-4),
        (Format::Bf16, 1.7e-3),
        (Format::Q8_0, 5.4e-3),
        (Format::Int8Row, 7.3e-3),
        (Format::Q6K, 1.75e-2),
        (Format::Q5_1, 3.8e-2),
        (Format::Q5_0, 4.3e-2),
        (Format::Q4K, 7.03e-2),
        (Format::Q4_1, 7.8e-2),
        (Format::Q4_0, 8.6e-2),
        (Format::Nf4, 9.3e-2),
        (Format::Int4Group(32), 1e-1),
        (Format::Int4Group(64), 1.08e-1),
        (Format::Int4Group(128), 1.17e-1),
    ];
    for (format, bound) in table {
        let error = relative_error(&x, &widened(format, 512, &narrowed(format, 512, &x, None)), |_| 1.0);
        assert!(error <= bound, "{format}: {error:.2e} above {bound:.2e}");
        assert!(error >= 0.85 * bound, "{format}: {error:.2e} far below {bound:.2e}: tighten the bound");
    }
}

#[test]
fn importance_lowers_the_weighted_error() {
    let x = normal(64 * 512, 8);
    let importance: Vec<f32> = (0..512).map(|i| if i % 8 == 0 { 50.0 } else { 0.1 }).collect();
    for format in [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q4K,
        Format::Q6K,
        Format::Int4Group(64),
        Format::Nf4,
    ] {
        let error = |importance: Option<&[f32]>, weights: &[f32]| {
            relative_error(&x, &widened(format, 512, &narrowed(format, 512, &x, importance)), |i| weights[i % 512])
        };
        let (with, without) = (error(Some(&importance), &importance), error(None, &importance));
        assert!(with < 0.97 * without, "{format}: {with:.3e} with, {without:.3e} without");
        // weights that say nothing do no harm
        let none = error(Some(&vec![0.0; 512]), &vec![1.0; 512]);
        let plain = error(None, &vec![1.0; 512]);
        assert!(none <= 1.05 * plain, "{format}: {none:.3e} with weights of zero, {plain:.3e} without");
    }
}

#[test]
fn rows_of_zeros_come_back_as_zeros_and_what_is_not_finite_stays_visible() {
    for format in Format::ALL.into_iter().filter(|&f| can_quantise(f)) {
        let zeros = vec![0.0; 512];
        assert_eq!(widened(format, 512, &narrowed(format, 512, &zeros, None)), zeros, "{format}");
        assert_eq!(widened(format, 512, &narrowed(format, 512, &zeros, Some(&zeros))), zeros, "{format}");
        for (bad, at) in [(f32::NAN, 3), (f32::INFINITY, 300), (f32::NEG_INFINITY, 511)] {
            let mut x = normal(512, 3);
            x[at] = bad;
            for importance in [None, Some(&vec![1.0; 512][..])] {
                let y = widened(format, 512, &narrowed(format, 512, &x, importance));
                assert!(!y[at].is_finite(), "{format}: {bad} became {}", y[at]);
            }
        }
        // the smallest and greatest numbers do not panic
        for v in [1e-45, 1e-38, 3e38, -3e38, f32::MAX] {
            let mut x = normal(512, 4);
            x[17] = v;
            for importance in [None, Some(&vec![1.0; 512][..]), Some(&vec![f32::INFINITY; 512][..])] {
                narrowed(format, 512, &x, importance);
                narrowed(format, 512, &vec![v; 512], importance);
            }
        }
    }
}

#[test]
fn formats_that_are_only_read_and_broken_rows_are_errors() {
    let error = quantise_row(Format::Q3K, &[0.0; 256], None, &mut [0; 110]).unwrap_err();
    assert!(error.contains("q3_k is only read"), "{error}");
    assert!(quantise_rows(Format::Q2K, 256, &[0.0; 256], None, &mut [0; 84]).is_err());
    let error = quantise_row(Format::Q8_0, &[0.0; 31], None, &mut []).unwrap_err();
    assert!(error.contains("rows of 31"), "{error}");
}

#[test]
fn our_groups_have_the_scale_of_their_extreme_rounded_to_f16() {
    let x: Vec<f32> = (0..64).map(|i| (i as f32 - 20.0) / 100.0).collect();
    let bytes = narrowed(Format::Int4Group(64), 64, &x, None);
    let scale = half::f16::from_bits(u16::from_le_bytes([bytes[0], bytes[1]]));
    assert_eq!(scale, half::f16::from_f32(0.43 / 7.0));
    // number 63 is the extreme: code 7 + 8 in the last high nibble
    assert_eq!(bytes[33] >> 4, 15);
    for (&x, y) in x.iter().zip(widened(Format::Int4Group(64), 64, &bytes)) {
        assert!((x - y).abs() <= scale.to_f32() / 2.0 * 1.001, "{x} became {y}");
    }
    // of 32 numbers: the bytes mean what they mean in Q4_0
    let bytes = narrowed(Format::Int4Group(32), 64, &x, None);
    assert_eq!(widened(Format::Int4Group(32), 64, &bytes), widened(Format::Q4_0, 64, &bytes));
}
