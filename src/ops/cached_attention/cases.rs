//! Lengths around tiles and parts, rings that have wrapped, groups of heads, rows that differ in place, in every storage.

use super::CachedAttention;
use crate::ops::attention::EXP_ULPS;
use crate::ops::cache::{STORAGES, cache_operands, place_operand};
use crate::ops::{Case, Sample};
use crate::tensor::DType;

/// B, T, H, Hkv, S, D
type Size = [usize; 6];

#[derive(Clone)]
struct Setting {
    size: Size,
    window: Option<usize>,
    softcap: Option<f32>,
    place: Vec<i32>,
}

impl Setting {
    fn case(&self, dtype: DType) -> Case {
        let Setting { size, window, softcap, place } = self.clone();
        let [b, t, h, kv, s, d] = size;
        let op = CachedAttention { window, scale: 1.0 / (d as f32).sqrt(), softcap };
        let mut inputs = vec![Sample::normal(&[b, t, h, d]).fixed()];
        let cached = [(); 2].map(|_| cache_operands(dtype, [b, kv, s, d]));
        inputs.extend(cached.iter().map(|c| c[0].clone()));
        inputs.extend(cached.iter().flat_map(|c| c[1..].to_vec()));
        inputs.push(place_operand(&place));
        let label = format!("{dtype} {size:?} window {window:?} cap {softcap:?} place {place:?}");
        // A capped score is the cap times a tanh that is right to some roundings, and its weight is wrong by as much.
        let cap = softcap.map_or(0.0, |c| 4.0 * f64::from(c));
        Case::new(label, op, inputs).ulps(EXP_ULPS + cap).forward_only()
    }
}

fn setting(size: Size, window: Option<usize>, softcap: Option<f32>, place: &[i32]) -> Setting {
    Setting { size, window, softcap, place: place.to_vec() }
}

/// Twelve heads of 64 with 512 and 4096 keys before one token and 128; eight that share two, of 128.
pub fn sizes() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in STORAGES {
        for slots in [512, 4096] {
            for t in [1, 128] {
                let place = [slots - t as i32, t as i32];
                all.push(setting([1, t, 12, 12, slots as usize, 64], None, None, &place).case(dtype));
            }
        }
        all.push(setting([1, 1, 8, 2, 4096, 128], None, None, &[4095, 1]).case(dtype));
    }
    all
}

pub fn cases() -> Vec<Case> {
    let mut settings = Vec::new();
    let mut add = |size: Size, window: Option<usize>, softcap: Option<f32>, place: &[i32]| {
        settings.push(setting(size, window, softcap, place));
    };
    add([1, 1, 1, 1, 1, 4], None, None, &[0, 1]);
    add([1, 1, 2, 1, 5, 16], None, None, &[1_000_000_001, 1]);
    add([3, 1, 7, 1, 64, 80], None, None, &[0, 1, 63, 1, 63, 0]);
    add([1, 3, 4, 2, 5, 64], None, Some(3.0), &[2, 3]);
    // Wrapped, with a window that reaches over the end of the ring, and one longer than the ring.
    add([2, 3, 2, 2, 64, 16], Some(20), None, &[70, 3, 9, 2]);
    add([1, 1, 2, 2, 130, 64], Some(100), None, &[1000, 1]);
    add([1, 17, 2, 1, 64, 4], Some(1000), None, &[60, 17]);
    add([2, 17, 2, 2, 130, 80], None, None, &[0, 17, 113, 11]);
    add([1, 17, 14, 2, 130, 16], Some(40), Some(10.0), &[200, 17]);
    add([1, 64, 2, 2, 64, 64], None, None, &[0, 64]);
    add([2, 70, 3, 3, 130, 16], Some(33), None, &[40, 70, 300, 69]);
    // Nothing new, and a place outside what is possible.
    add([2, 3, 2, 1, 9, 8], None, None, &[4, 0, -7, 90]);
    // Several parts of a text, in a cache that is not full.
    add([1, 1, 4, 2, 1500, 64], None, None, &[1200, 1]);
    add([2, 4, 4, 4, 700, 16], None, Some(30.0), &[650, 4, 290, 3]);
    add([1, 2, 1, 1, 1030, 256], None, None, &[1028, 2]);
    add([0, 1, 2, 1, 9, 8], None, None, &[]);
    let mut cases: Vec<Case> =
        STORAGES.iter().flat_map(|dtype| settings.iter().map(|s| s.case(*dtype)).collect::<Vec<_>>()).collect();
    // More than 1 MiB of keys.
    cases.extend(STORAGES.map(|dtype| {
        let slots = 3600 / dtype.bytes();
        setting([1, 2, 5, 5, slots, 64], Some(slots - 100), None, &[4000, 2]).case(dtype)
    }));
    // Head sizes that are no whole quads: GPUs read these as single numbers in f32, and leave others to the CPU.
    let odd = [
        setting([1, 3, 2, 1, 40, 5], Some(9), None, &[50, 3]),
        setting([1, 40, 2, 2, 130, 67], None, None, &[90, 40]),
        setting([1, 1, 2, 1, 300, 67], None, None, &[280, 1]),
    ];
    cases.extend(odd.iter().map(|s| s.case(DType::F32)));
    cases.extend([DType::F16, DType::I8].map(|dtype| odd[0].case(dtype)));
    cases
}
