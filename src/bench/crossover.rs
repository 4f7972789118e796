//! From which size on a GPU is faster than the CPU beside it.

use super::report::{Crossover, DeviceReport, Direction, Dot};
use crate::device::roof::StepCrossover;

/// The name under which whole training steps of all presets are compared.
pub const TRAINING_STEP: &str = "training step";

/// Of every GPU, for every operator and direction measured on both.
pub fn crossovers(devices: &[DeviceReport]) -> Vec<Crossover> {
    let Some(cpu) = fastest_cpu(devices) else { return vec![] };
    let gpus = devices.iter().filter(|d| d.threads.is_none());
    gpus.flat_map(|gpu| of_gpu(gpu, cpu)).collect()
}

/// The CPU with the most threads.
fn fastest_cpu(devices: &[DeviceReport]) -> Option<&DeviceReport> {
    devices.iter().filter(|d| d.threads.is_some()).max_by_key(|d| d.threads)
}

/// The operator that a dot is compared as.
fn family(dot: &Dot) -> (&str, Direction) {
    match dot.direction {
        Direction::Step => (TRAINING_STEP, Direction::Step),
        direction => (&dot.operator, direction),
    }
}

fn of_gpu(gpu: &DeviceReport, cpu: &DeviceReport) -> Vec<Crossover> {
    let mut families: Vec<(&str, Direction)> = Vec::new();
    for dot in &gpu.dots {
        if !families.contains(&family(dot)) {
            families.push(family(dot));
        }
    }
    let one = |(operator, direction): (&str, Direction)| {
        let pairs = pairs(gpu, cpu, (operator, direction));
        (!pairs.is_empty()).then(|| {
            let from = first_that_stays(&pairs);
            Crossover {
                operator: operator.into(),
                direction,
                gpu: gpu.id.clone(),
                flops: from.map(|d| d.flops),
                case: from.map(|d| d.case.clone()),
            }
        })
    };
    families.into_iter().filter_map(one).collect()
}

/// The GPU's dots of one family with whether it won, smallest first.
fn pairs<'a>(gpu: &'a DeviceReport, cpu: &DeviceReport, of: (&str, Direction)) -> Vec<(&'a Dot, bool)> {
    let mut pairs: Vec<(&Dot, bool)> = gpu
        .dots
        .iter()
        .filter(|d| family(d) == of)
        .filter_map(|d| {
            let other = cpu.dots.iter().find(|c| c.id() == d.id())?;
            // Wall clock on both: what a program waits for.
            Some((d, d.seconds.median < other.seconds.median))
        })
        .collect();
    pairs.sort_by(|a, b| a.0.flops.total_cmp(&b.0.flops));
    pairs
}

/// The smallest that wins with every larger one.
fn first_that_stays<'a>(pairs: &[(&'a Dot, bool)]) -> Option<&'a Dot> {
    pairs.iter().rev().take_while(|(_, won)| *won).last().map(|(dot, _)| *dot)
}

/// What `--device auto` is told about a GPU.
pub fn of_steps(gpu: &DeviceReport, devices: &[DeviceReport], crossovers: &[Crossover]) -> Option<StepCrossover> {
    let cpu = fastest_cpu(devices)?;
    let found = crossovers.iter().find(|c| c.gpu == gpu.id && c.operator == TRAINING_STEP)?;
    let largest = pairs(gpu, cpu, (TRAINING_STEP, Direction::Step)).last()?.0.flops;
    Some(StepCrossover { from_flops: found.flops, largest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Bound, Ceilings, Stat};

    fn dot(case: &str, flops: f64, seconds: f64, direction: Direction) -> Dot {
        Dot {
            operator: "matmul".into(),
            case: case.into(),
            direction,
            flops,
            bytes: 1.0,
            compute: "f32".into(),
            level: "memory".into(),
            seconds: Stat::of(&[seconds]),
            device_seconds: None,
            roof_seconds: 1.0,
            share: 1.0,
            bound: Bound::Compute,
            kernels: vec![],
            tokens_per_second: None,
        }
    }

    fn device(id: &str, threads: Option<usize>, times: &[f64], direction: Direction) -> DeviceReport {
        let dots = times.iter().enumerate().map(|(i, t)| dot(&i.to_string(), 10f64.powi(i as i32), *t, direction));
        DeviceReport {
            id: id.into(),
            name: id.into(),
            driver: String::new(),
            threads,
            software: false,
            key: id.into(),
            ceilings: Ceilings::default(),
            dots: dots.collect(),
        }
    }

    #[test]
    fn a_gpu_pays_off_from_the_size_after_which_it_never_loses() {
        let cpu1 = device("cpu1", Some(1), &[9.0; 4], Direction::Forward);
        let cpu = device("cpu", Some(8), &[1.0, 2.0, 3.0, 4.0], Direction::Forward);
        let gpu = device("gpu:0", None, &[0.5, 2.5, 2.5, 2.5], Direction::Forward);
        let found = crossovers(&[cpu1.clone(), cpu.clone(), gpu]);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].flops, found[0].case.as_deref()), (Some(100.0), Some("2")));
        let slow = device("gpu:0", None, &[0.5, 0.5, 0.5, 5.0], Direction::Forward);
        assert_eq!(crossovers(&[cpu1, cpu, slow])[0].flops, None);
    }

    #[test]
    fn steps_of_all_presets_are_one_family() {
        let cpu = device("cpu", Some(8), &[1.0, 2.0, 3.0], Direction::Step);
        let gpu = device("gpu:0", None, &[2.0, 1.0, 1.0], Direction::Step);
        let devices = [cpu, gpu];
        let found = crossovers(&devices);
        assert_eq!((found[0].operator.as_str(), found[0].flops), (TRAINING_STEP, Some(10.0)));
        let told = of_steps(&devices[1], &devices, &found).unwrap();
        assert_eq!(told, StepCrossover { from_flops: Some(10.0), largest: 100.0 });
    }

    #[test]
    fn without_a_gpu_or_a_cpu_there_is_nothing_to_compare() {
        assert!(crossovers(&[device("cpu", Some(2), &[1.0], Direction::Forward)]).is_empty());
        assert!(crossovers(&[device("gpu:0", None, &[1.0], Direction::Forward)]).is_empty());
    }
}
