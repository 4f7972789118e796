//! A kernel that does nothing, to time what calling one costs.

use super::report::Stat;
use super::timing::{Effort, measure, seconds};
use crate::Result;
use crate::device::gpu::{Buf, Lowering, Params};
use crate::device::{
    BufferSpec, Call, Cost, CpuCall, Device, Executable, Home, Kernel, Place, Store, Unsupported, Work,
};
use crate::tensor::{RefTensor, TensorType};
use std::sync::Arc;

/// Leaves its output as it is.
#[derive(Debug)]
pub struct Nothing;

impl Kernel for Nothing {
    fn name(&self) -> &'static str {
        "nothing"
    }
    fn reference(&self, _: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        outputs.iter().map(|t| RefTensor::zeros(&t.shape)).collect()
    }
    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        std::hint::black_box(call.output_ptr(0));
        Ok(())
    }
    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let out = lowering.write(Buf::Out(0));
        let template = crate::shader!("bench_nothing.wgsl");
        lowering.dispatch("bench/nothing", template, minijinja::context! {}, &[out], Params::new(), [1, 1, 1])
    }
}

/// `calls` calls that do nothing, one after another.
pub fn work(calls: usize) -> Work {
    let place = Place { buffer: 0, ty: TensorType::f32(&[4]) };
    let call = Call {
        kernel: Arc::new(Nothing),
        label: "nothing".into(),
        inputs: vec![],
        outputs: vec![place.clone()],
        cost: Cost::default(),
    };
    Work {
        buffers: vec![BufferSpec { bytes: 16, home: Home::Transient }],
        calls: vec![call; calls],
        outputs: vec![("y".into(), place)],
        ..Work::default()
    }
}

/// Runs `n` times and waits for the end.
pub fn run_and_wait(device: &Device, executable: &mut dyn Executable, n: usize) -> Result<f64> {
    seconds(|| {
        for _ in 0..n {
            executable.run()?;
        }
        match device {
            Device::Gpu(context) => context.wait(),
            _ => Ok(()),
        }
    })
}

/// What one more call in a work costs: the time of many calls less that of one, by their number.
pub fn seconds_per_call(device: &Device, effort: &Effort) -> Result<Stat> {
    const CALLS: usize = 256;
    let mut many = device.prepare(work(CALLS), &mut Store::new(device))?;
    let mut one = device.prepare(work(1), &mut Store::new(device))?;
    let single = measure(effort, |n| run_and_wait(device, one.as_mut(), n))?;
    let all = measure(effort, |n| run_and_wait(device, many.as_mut(), n))?;
    let each = |t: f64| ((t - single.median) / (CALLS - 1) as f64).max(1e-10);
    Ok(Stat { median: each(all.median), low: each(all.low), high: each(all.high), best: each(all.best), ..all })
}
