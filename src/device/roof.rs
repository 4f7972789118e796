//! The roof over a device: the least time in which it can do a `Work`, from rates that were measured on it
//! (`bench --roofline`). Williams, Waterman and Patterson 2009, with a bandwidth for every size of working set.
//!
//! A call takes at least as long as its operations at the peak rate of their kind, and as long as its bytes at the bandwidth of the
//! memory they come from. Which memory that is follows from the operand's reuse distance (Mattson et al. 1970): the bytes of all that is
//! touched between two uses of it when the work is run again and again. Bytes that come from far pass the nearer levels too, so the
//! bound is the largest over all distances d of (bytes with a distance of at least d) / (bandwidth at d).

use super::{Call, Work};
use crate::cache;
use crate::tensor::DType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Rates of a device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Roof {
    /// Operations per second by kind (`f32`, `int8 dot`, ...).
    pub peaks: BTreeMap<String, f64>,
    /// (working set in bytes, bytes/s), by working set; never rising (see [`Roof::envelope`]).
    pub bandwidth: Vec<(u64, f64)>,
    /// Seconds that a call costs however small it is.
    pub call_seconds: f64,
    /// For a GPU: from how many FLOPs of a training step on it is faster than the CPU beside it.
    pub step_crossover: Option<StepCrossover>,
}

/// Where a GPU begins to pay off, measured with whole training steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepCrossover {
    /// FLOPs of the smallest step from which on the GPU was faster; none: it never was.
    pub from_flops: Option<f64>,
    /// FLOPs of the largest step measured: beyond it nothing is known where the GPU never won.
    pub largest: f64,
}

impl StepCrossover {
    /// Whether the GPU is faster for a step of so many FLOPs; none where that was not measured.
    pub fn gpu_wins(&self, flops: f64) -> Option<bool> {
        match self.from_flops {
            Some(from) => Some(flops >= from),
            None if flops <= self.largest => Some(false),
            None => None,
        }
    }
}

/// What binds a work, and how long it takes at least.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Least {
    pub seconds: f64,
    /// Part of `seconds` in calls that arithmetic binds, and that memory binds.
    pub compute_seconds: f64,
    pub memory_seconds: f64,
    /// Seconds of launching the calls; not part of `seconds`.
    pub overhead_seconds: f64,
    /// The kind of arithmetic that most operations are of.
    pub kind: String,
    /// The reuse distance at which most of the memory time is bound.
    pub distance: u64,
}

/// The name of the peak of ordinary arithmetic.
pub const F32: &str = "f32";

impl Roof {
    /// Bandwidths as they bind: a larger working set is never faster than a smaller one, so that measured points that are (noise,
    /// too few threads busy) lift the smaller ones.
    pub fn envelope(points: impl IntoIterator<Item = (u64, f64)>) -> Vec<(u64, f64)> {
        let mut best: BTreeMap<u64, f64> = BTreeMap::new();
        for (bytes, rate) in points {
            let entry = best.entry(bytes).or_insert(0.0);
            *entry = rate.max(*entry);
        }
        let mut highest = 0.0f64;
        let mut envelope: Vec<(u64, f64)> = best
            .into_iter()
            .rev()
            .map(|(bytes, rate)| {
                highest = highest.max(rate);
                (bytes, highest)
            })
            .collect();
        envelope.reverse();
        envelope
    }

    /// bytes/s for a working set, interpolated between measured ones (straight lines in log-log); outside them the nearest.
    /// Infinite when nothing was measured.
    pub fn bandwidth_at(&self, working_set: u64) -> f64 {
        let after = self.bandwidth.partition_point(|(b, _)| *b < working_set);
        match (after.checked_sub(1).map(|i| self.bandwidth[i]), self.bandwidth.get(after).copied()) {
            (None, None) => f64::INFINITY,
            (None, Some((_, rate))) | (Some((_, rate)), None) => rate,
            (Some(_), Some((bytes, rate))) if bytes == working_set => rate,
            (Some((b0, r0)), Some((b1, r1))) => {
                let at = ((working_set as f64).ln() - (b0 as f64).ln()) / ((b1 as f64).ln() - (b0 as f64).ln());
                (r0.ln() + at * (r1.ln() - r0.ln())).exp()
            }
        }
    }

    /// Operations per second of `kind`, or of f32 where that has no peak of its own; infinite when neither was measured.
    pub fn peak(&self, kind: &str) -> f64 {
        self.peaks.get(kind).or_else(|| self.peaks.get(F32)).copied().unwrap_or(f64::INFINITY)
    }

    /// Which peak bounds a call, by its operands and the labels of the kernels that run it.
    pub fn kind(&self, call: &Call, kernels: &[String]) -> &str {
        let wants = |kind: &str| self.peaks.get_key_value(kind).map(|(k, _)| k.as_str());
        let cooperative = kernels.iter().any(|k| k.contains("cooperative"));
        let bytes_in = call.inputs.iter().filter(|p| p.ty.dtype == DType::I8).count();
        let found = match () {
            _ if cooperative => wants("cooperative matrix f16"),
            // Operations on two tensors of int8 are integer dot products; with one, it is turned into floats first.
            _ if bytes_in >= 2 || matches!(call.kernel.name(), "matmul_q8q8" | "packed_linear_int8") => {
                wants("int8 dot")
            }
            _ => None,
        };
        found.unwrap_or(F32)
    }

    /// The least time of `work`, run again and again. `kernels` are the labels that ran, where known.
    pub fn least(&self, work: &Work, kernels: &[String]) -> Least {
        let mut least = Least::default();
        let mut by_kind: BTreeMap<&str, f64> = BTreeMap::new();
        let mut longest = 0.0;
        for (call, traffic) in work.calls.iter().zip(traffic(work)) {
            let kind = self.kind(call, kernels);
            *by_kind.entry(kind).or_default() += call.cost.flops;
            let compute = call.cost.flops / self.peak(kind);
            let (memory, distance) = self.memory_seconds(traffic);
            match compute >= memory {
                true => least.compute_seconds += compute,
                false => least.memory_seconds += memory,
            }
            if memory > longest {
                (longest, least.distance) = (memory, distance);
            }
            least.overhead_seconds += self.call_seconds;
        }
        least.seconds = least.compute_seconds + least.memory_seconds;
        let most = by_kind.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        least.kind = most.map_or(F32, |(kind, _)| kind).to_string();
        least
    }

    /// Of (distance, bytes) pairs: the least time, and the distance that bounds it.
    fn memory_seconds(&self, mut traffic: Vec<(u64, f64)>) -> (f64, u64) {
        traffic.sort_by_key(|(distance, _)| std::cmp::Reverse(*distance));
        let (mut bytes, mut worst) = (0.0, (0.0, 0));
        for (distance, b) in traffic {
            bytes += b;
            let seconds = bytes / self.bandwidth_at(distance);
            if seconds > worst.0 {
                worst = (seconds, distance);
            }
        }
        worst
    }
}

/// For every call, its operands as (reuse distance, bytes moved) when the work is run again and again. An operand that the operator's
/// cost says is not touched whole (a gathered table) counts with its share.
fn traffic(work: &Work) -> Vec<Vec<(u64, f64)>> {
    // Most recently touched last: (buffer, bytes touched).
    let mut recent: Vec<(usize, f64)> = Vec::new();
    let mut result = Vec::new();
    for round in 0..2 {
        for call in &work.calls {
            let mut moved = Vec::new();
            let sides = [(&call.inputs, call.cost.bytes_read), (&call.outputs, call.cost.bytes_written)];
            for (places, cost) in sides {
                let whole: f64 = places.iter().map(|p| p.ty.bytes() as f64).sum();
                let share = if whole > 0.0 { cost / whole } else { 0.0 };
                moved.extend(places.iter().map(|p| (p.buffer, p.ty.bytes() as f64, share)));
            }
            let mut own: Vec<(usize, f64)> = Vec::new();
            for (buffer, bytes, share) in &moved {
                let touched = bytes * share.min(1.0);
                match own.iter_mut().find(|(b, _)| b == buffer) {
                    Some((_, t)) => *t = t.max(touched),
                    None => own.push((*buffer, touched)),
                }
            }
            // All operands of a call are in use at once.
            let together: f64 = own.iter().map(|(_, t)| t).sum();
            if round == 1 {
                let distance = |buffer: usize| {
                    let since = recent.iter().rev().take_while(|(b, _)| *b != buffer);
                    let others = since.filter(|(b, _)| own.iter().all(|(o, _)| o != b));
                    (others.map(|(_, t)| t).sum::<f64>() + together) as u64
                };
                result.push(moved.iter().map(|(b, bytes, share)| (distance(*b), bytes * share)).collect());
            }
            recent.retain(|(b, _)| own.iter().all(|(o, _)| o != b));
            recent.extend(own);
        }
    }
    result
}

fn file() -> Option<PathBuf> {
    cache::folder().map(|f| f.join("roofs.json"))
}

fn known() -> BTreeMap<String, Roof> {
    let text = file().and_then(|path| std::fs::read(path).ok());
    text.and_then(|t| serde_json::from_slice(&t).ok()).unwrap_or_default()
}

/// What an earlier measurement found for a device (`probe::gpu_key`, `probe::cpu_key`).
pub fn remembered(key: &str) -> Option<Roof> {
    known().remove(key)
}

/// Keeps a measurement in the cache folder.
pub fn remember(key: &str, roof: Roof) -> crate::Result<()> {
    let Some(path) = file() else { return Ok(()) };
    let mut all = known();
    all.insert(key.into(), roof);
    let text = serde_json::to_vec_pretty(&all).map_err(|e| crate::Error::Failed(e.to_string()))?;
    cache::replace(&path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{BufferSpec, Cost, CpuCall, Home, Kernel, Place, Unsupported};
    use crate::tensor::{RefTensor, TensorType};
    use std::sync::Arc;

    fn roof() -> Roof {
        let bandwidth = Roof::envelope([(1000, 100.0), (10_000, 10.0), (100_000, 1.0)]);
        Roof { peaks: [(F32.to_string(), 1000.0)].into(), bandwidth, ..Roof::default() }
    }

    #[derive(Debug)]
    struct Named;
    impl Kernel for Named {
        fn name(&self) -> &'static str {
            "named"
        }
        fn reference(&self, _: &[&RefTensor], _: &[TensorType]) -> Vec<RefTensor> {
            vec![]
        }
        fn cpu(&self, _: &mut CpuCall) -> crate::Result<()> {
            Ok(())
        }
        fn gpu(&self, _: &mut super::super::gpu::Lowering) -> Result<(), Unsupported> {
            Ok(())
        }
    }

    /// Calls that read one buffer and write another, of these sizes in floats.
    fn work(sizes: &[usize], calls: &[(usize, usize)], flops: f64) -> Work {
        let place = |b: usize| Place { buffer: b, ty: TensorType::f32(&[sizes[b]]) };
        let cost = |a: usize, b: usize| Cost {
            flops,
            bytes_read: 4.0 * sizes[a] as f64,
            bytes_written: 4.0 * sizes[b] as f64,
        };
        Work {
            buffers: sizes.iter().map(|n| BufferSpec { bytes: 4 * *n as u64, home: Home::Transient }).collect(),
            calls: calls
                .iter()
                .map(|&(a, b)| Call {
                    kernel: Arc::new(Named),
                    label: String::new(),
                    inputs: vec![place(a)],
                    outputs: vec![place(b)],
                    cost: cost(a, b),
                })
                .collect(),
            ..Work::default()
        }
    }

    #[test]
    fn bandwidth_falls_with_the_working_set_and_is_interpolated() {
        let rising = Roof::envelope([(10, 5.0), (20, 7.0), (20, 6.0), (40, 1.0)]);
        assert_eq!(rising, [(10, 7.0), (20, 7.0), (40, 1.0)]);
        let roof = roof();
        assert_eq!(roof.bandwidth_at(10), 100.0);
        assert!((roof.bandwidth_at(3162) - 31.62).abs() < 0.01);
        assert_eq!(roof.bandwidth_at(1 << 40), 1.0);
        assert_eq!(Roof::default().bandwidth_at(5), f64::INFINITY);
    }

    #[test]
    fn a_call_is_bound_by_arithmetic_or_by_memory() {
        let small = work(&[100, 25], &[(0, 1)], 1e6);
        let least = roof().least(&small, &[]);
        assert_eq!((least.seconds, least.compute_seconds), (1e3, 1e3));
        // 500 bytes, all of which are near.
        let least = roof().least(&work(&[100, 25], &[(0, 1)], 0.0), &[]);
        assert_eq!((least.seconds, least.distance), (5.0, 500));
    }

    #[test]
    fn what_was_just_written_is_near_and_what_comes_round_again_is_far() {
        // 1 -> 2 where 1 was just written; 0 comes round after 40 000 + 400 + 400 bytes.
        let w = work(&[10_000, 100, 100], &[(0, 1), (1, 2)], 0.0);
        let t = traffic(&w);
        assert_eq!(t[0], [(40_800, 40_000.0), (40_800, 400.0)]);
        assert_eq!(t[1][0], (800, 400.0));
        assert_eq!(t[1][1], (40_800, 400.0));
        let far = roof().bandwidth_at(40_800);
        let expected = 40_400.0 / far + (400.0 / far).max(800.0 / 100.0);
        assert!((roof().least(&w, &[]).seconds - expected).abs() < 1e-9 * expected);
    }

    #[test]
    fn a_table_that_is_gathered_counts_with_what_is_read_of_it() {
        let mut w = work(&[100_000, 100], &[(0, 1)], 0.0);
        w.calls[0].cost.bytes_read = 400.0;
        assert_eq!(traffic(&w)[0], [(800, 400.0), (800, 400.0)]);
    }

    #[test]
    fn a_crossover_answers_only_for_what_was_measured() {
        let wins = StepCrossover { from_flops: Some(1e9), largest: 1e10 };
        assert_eq!((wins.gpu_wins(1e8), wins.gpu_wins(1e12)), (Some(false), Some(true)));
        let never = StepCrossover { from_flops: None, largest: 1e10 };
        assert_eq!((never.gpu_wins(1e8), never.gpu_wins(1e12)), (Some(false), None));
    }
}
