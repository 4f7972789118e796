//! Every operator of the registry at its timed sizes, forward and backward, on the CPU and on GPUs that are not software ones:
//!
//!     cargo bench --bench operators -- softmax
//!
//! Names are `device/operator/direction/size`. `LYNX_BENCH_DEVICE` names another device (`llvmpipe`). Only what the name filter asks
//! for is made ready. `cargo test --benches` runs the first size of each once.

use criterion::{BenchmarkId, Criterion};
use lynx_gpu::bench::Target;
use lynx_gpu::bench::dots::{items, plan, ready, run_and_wait};
use std::time::Duration;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    // As criterion reads the command line: in test mode (without `--bench`) each runs once.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let testing = !arguments.iter().any(|a| a == "--bench");
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let device = std::env::var("LYNX_BENCH_DEVICE").unwrap_or_else(|_| "all".into());
    let targets = Target::exactly(&device).unwrap_or_else(|e| panic!("{e}"));
    for target in targets {
        let _threads = target.set_threads();
        for item in items(if testing { 1 } else { usize::MAX }) {
            let group = format!("{}/{}", target.id, item.operator);
            let id = BenchmarkId::new(format!("{:?}", item.direction).to_lowercase(), &item.case.label);
            let name = format!("{group}/{}/{}", format!("{:?}", item.direction).to_lowercase(), item.case.label);
            if !filters.is_empty() && !filters.iter().any(|f| name.contains(f.as_str())) {
                continue;
            }
            let prepared = plan(&item).and_then(|plan| ready(&item, &plan, &target.device));
            let mut prepared = match prepared {
                Ok(prepared) => prepared,
                Err(e) => {
                    eprintln!("{name}: left out: {e}");
                    continue;
                }
            };
            let mut group = criterion.benchmark_group(&group);
            group.bench_function(id, |bencher| {
                bencher.iter_custom(|n| {
                    let seconds = run_and_wait(&target.device, prepared.run.as_mut(), n as usize);
                    Duration::from_secs_f64(seconds.unwrap_or_else(|e| panic!("{name}: {e}")))
                });
            });
            group.finish();
        }
    }
    criterion.final_summary();
}
