//! Device time of every dispatch of a plan, from timestamps: inside the pass where the device can, else one pass for each
//! dispatch, else wall clock around each dispatch alone.

use super::context::Context;
use super::runner::{Batch, Runner, Step};
use crate::Result;
use crate::device::{CallTime, Executable};
use std::ops::Range;
use std::time::Instant;

/// Timestamps in one query set, by WebGPU.
const QUERIES: usize = 4096;

/// How a device tells the time of a dispatch.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Clock {
    /// Timestamps between dispatches of one pass: consecutive ones share a stamp, so the parts add up to the whole.
    InsidePasses,
    /// A pass for each dispatch, stamped at its edges.
    PassEdges,
    /// The host waits for each dispatch: includes the cost of submitting.
    Wall,
}

impl Clock {
    fn of(context: &Context) -> Clock {
        let has = |f| context.device.features().contains(f);
        match (has(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES), has(wgpu::Features::TIMESTAMP_QUERY)) {
            (true, true) => Clock::InsidePasses,
            (false, true) => Clock::PassEdges,
            _ => Clock::Wall,
        }
    }
    /// Dispatches that one query set can time.
    fn most(self) -> usize {
        match self {
            Clock::InsidePasses => QUERIES - 1,
            Clock::PassEdges => QUERIES / 2,
            Clock::Wall => 1,
        }
    }
}

impl Runner {
    /// See `Executable::profile`.
    pub(super) fn times(&mut self, runs: usize) -> Result<Vec<CallTime>> {
        self.warm_up()?;
        let clock = Clock::of(&self.context);
        let mut seconds: Vec<Vec<f64>> = vec![vec![]; self.steps.len()];
        for _ in 0..runs.max(1) {
            self.context.wait()?;
            for (i, batch) in self.batches.iter().enumerate() {
                let last = i + 1 == self.batches.len();
                match batch {
                    Batch::Gpu(range) => {
                        for at in range.clone().step_by(clock.most()) {
                            let part = at..(at + clock.most()).min(range.end);
                            let times = match clock {
                                Clock::Wall => self.wall(part.clone())?,
                                _ => self.stamped(part.clone(), clock)?,
                            };
                            part.zip(times).for_each(|(step, t)| seconds[step].push(t));
                        }
                        if last && !self.work.copies.is_empty() {
                            self.submit(0..0, true);
                        }
                    }
                    Batch::Cpu(step) => {
                        let start = Instant::now();
                        self.run_batch(batch, last)?;
                        seconds[*step].push(start.elapsed().as_secs_f64());
                    }
                }
            }
        }
        self.context.wait()?;
        let mut kernels = self.notes().kernels.into_iter();
        let times = self.steps.iter().zip(seconds).map(|(step, mut seconds)| {
            seconds.sort_by(f64::total_cmp);
            let (call, kernel) = match step {
                Step::Gpu(p) => (p.call, kernels.next().unwrap_or_default()),
                Step::Cpu(twin) => (twin.call, format!("cpu/{}", self.work.calls[twin.call].kernel.name())),
            };
            let label = self.work.calls[call].label.clone();
            CallTime { call, label, kernel, seconds: seconds[seconds.len() / 2] }
        });
        Ok(times.collect())
    }

    fn wall(&self, steps: Range<usize>) -> Result<Vec<f64>> {
        let start = Instant::now();
        self.submit(steps, false);
        self.context.wait()?;
        Ok(vec![start.elapsed().as_secs_f64()])
    }

    /// Runs `steps` in one submission and gives the seconds of each.
    fn stamped(&self, steps: Range<usize>, clock: Clock) -> Result<Vec<f64>> {
        let count = match clock {
            Clock::InsidePasses => steps.len() + 1,
            _ => 2 * steps.len(),
        };
        let device = &self.context.device;
        let set = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("kernel times"),
            ty: wgpu::QueryType::Timestamp,
            count: count as u32,
        });
        let bytes = 8 * count as u64;
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = self.context.create("kernel times", bytes, usage)?;
        let mut encoder = device.create_command_encoder(&Default::default());
        if clock == Clock::InsidePasses {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.write_timestamp(&set, 0);
            for (i, step) in self.steps[steps].iter().enumerate() {
                if let Step::Gpu(p) = step {
                    p.encode(&mut pass);
                }
                pass.write_timestamp(&set, i as u32 + 1);
            }
        } else {
            for (i, step) in self.steps[steps].iter().enumerate() {
                let i = i as u32;
                let writes = wgpu::ComputePassTimestampWrites {
                    query_set: &set,
                    beginning_of_pass_write_index: Some(2 * i),
                    end_of_pass_write_index: Some(2 * i + 1),
                };
                let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: Some(writes) };
                let mut pass = encoder.begin_compute_pass(&descriptor);
                if let Step::Gpu(p) = step {
                    p.encode(&mut pass);
                }
            }
        }
        encoder.resolve_query_set(&set, 0..count as u32, &resolved, 0);
        self.context.queue.submit([encoder.finish()]);
        let raw = self.context.read(&resolved, bytes)?;
        let stamps: Vec<u64> =
            raw.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes"))).collect();
        let period = 1e-9 * self.context.queue.get_timestamp_period() as f64;
        Ok(spans(&stamps, clock).into_iter().map(|ticks| ticks as f64 * period).collect())
    }
}

/// Ticks of each dispatch. A stamp before its predecessor (clocks that are reset) counts as no time.
fn spans(stamps: &[u64], clock: Clock) -> Vec<u64> {
    match clock {
        Clock::InsidePasses => stamps.windows(2).map(|w| w[1].saturating_sub(w[0])).collect(),
        _ => stamps.chunks_exact(2).map(|w| w[1].saturating_sub(w[0])).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_inside_a_pass_are_shared_by_neighbours_and_those_at_edges_are_not() {
        assert_eq!(spans(&[10, 15, 15, 40], Clock::InsidePasses), [5, 0, 25]);
        assert_eq!(spans(&[10, 15, 20, 40], Clock::PassEdges), [5, 20]);
        assert_eq!(spans(&[20, 10], Clock::PassEdges), [0]);
    }
}
