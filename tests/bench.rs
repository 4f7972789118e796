//! The measurements of `bench --roofline`: ceilings beside loops written separately, dots under their roof, and clear refusals.

use lynx_gpu::bench::report::{Access, Direction, SCHEMA, VERSION};
use lynx_gpu::bench::{Options, Report, roofline, schema};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

/// One measurement at a time: two would slow each other.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

/// A short measurement of the CPU with a few dots.
fn measured() -> &'static Report {
    static REPORT: OnceLock<Report> = OnceLock::new();
    REPORT.get_or_init(|| {
        // What a test measures is not remembered for the programs of this user.
        // SAFETY: set before any thread of this program reads the environment for it.
        unsafe { std::env::set_var("LYNX_CACHE", "") };
        let options = Options { device: "cpu".into(), filter: Some("adamw".into()), quick: true };
        roofline(&options, &mut ()).unwrap()
    })
}

#[cfg(target_arch = "x86_64")]
mod separately {
    //! STREAM's triad and a chain of fused multiply-adds in assembly: what no compiler can make faster or slower.

    use std::arch::asm;
    use std::time::Instant;

    /// Seconds of one pass of `a = b + 3 c` in 256-bit registers; lengths are a multiple of 8.
    pub fn triad(a: &mut [f32], b: &[f32], c: &[f32]) -> f64 {
        let start = Instant::now();
        let bytes = a.len() / 8 * 32;
        // SAFETY: the caller has AVX2 and FMA, and the arrays have one length.
        unsafe {
            asm!(
                "vmovd xmm0, {three:e}",
                "vbroadcastss ymm0, xmm0",
                "xor {at}, {at}",
                "2:",
                "vmovups ymm1, [{c} + {at}]",
                "vfmadd213ps ymm1, ymm0, [{b} + {at}]",
                "vmovups [{a} + {at}], ymm1",
                "add {at}, 32",
                "cmp {at}, {bytes}",
                "jb 2b",
                three = in(reg) 3.0f32.to_bits(),
                at = out(reg) _,
                a = in(reg) a.as_mut_ptr(),
                b = in(reg) b.as_ptr(),
                c = in(reg) c.as_ptr(),
                bytes = in(reg) bytes,
                out("xmm0") _,
                out("xmm1") _,
            );
        }
        start.elapsed().as_secs_f64()
    }

    macro_rules! chain {
        ($name:ident, $register:literal, $lanes:expr) => {
            /// FLOP/s of twelve independent chains, `rounds` long.
            pub fn $name(rounds: u64) -> f64 {
                let start = Instant::now();
                // SAFETY: the caller has the instructions. Registers hold whatever they held, made finite by zeroing.
                unsafe {
                    asm!(
                        "vxorps xmm0, xmm0, xmm0", "vxorps xmm1, xmm1, xmm1", "vxorps xmm2, xmm2, xmm2",
                        "vxorps xmm3, xmm3, xmm3", "vxorps xmm4, xmm4, xmm4", "vxorps xmm5, xmm5, xmm5",
                        "vxorps xmm6, xmm6, xmm6", "vxorps xmm7, xmm7, xmm7", "vxorps xmm8, xmm8, xmm8",
                        "vxorps xmm9, xmm9, xmm9", "vxorps xmm10, xmm10, xmm10", "vxorps xmm11, xmm11, xmm11",
                        "vxorps xmm12, xmm12, xmm12",
                        "2:",
                        concat!("vfmadd231ps ", $register, "0, ", $register, "12, ", $register, "12"),
                        concat!("vfmadd231ps ", $register, "1, ", $register, "12, ", $register, "12"),
                        concat!("vfmadd231ps ", $register, "2, ", $register, "12, ", $register, "12"),
                        concat!("vfmadd231ps ", $register, "3, ", $register, "12, ", $register, "12"),
                        concat!("vfmadd231ps ", $register, "4, ", $register, "12, ", $register, "12"),
                        concat!("vfmadd231ps ", $register, "5, ", $register, "12, ", $register, "12"),
                        concat!("vfmadd231ps ", $register, "6, ", $register, "12, ", $register, "12"),
                        concat!("vfmadd231ps ", $register, "7, ", $register, "12, ", $register, "12"),
                        concat!("vfmadd231ps ", $register, "8, ", $register, "12, ", $register, "12"),
                        concat!("vfmadd231ps ", $register, "9, ", $register, "12, ", $register, "12"),
                        concat!("vfmadd231ps ", $register, "10, ", $register, "12, ", $register, "12"),
                        concat!("vfmadd231ps ", $register, "11, ", $register, "12, ", $register, "12"),
                        "dec {n}",
                        "jnz 2b",
                        n = inout(reg) rounds => _,
                        out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                        out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                        out("xmm12") _,
                    );
                }
                rounds as f64 * 12.0 * $lanes * 2.0 / start.elapsed().as_secs_f64()
            }
        };
    }
    chain!(avx2_chain, "ymm", 8.0);
    chain!(avx512_chain, "zmm", 16.0);
}

/// A cache line of floats.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// The best of both, measured in turn, so that a busy machine slows both alike: at least `times` each, and as long again ten times
/// over while their ratio is more than `tolerance` from one (work elsewhere may last longer than a few measurements).
#[cfg(target_arch = "x86_64")]
fn best_in_turn(
    times: usize,
    tolerance: f64,
    mut one: impl FnMut() -> f64,
    mut other: impl FnMut() -> f64,
) -> (f64, f64) {
    let (mut a, mut b) = (0.0f64, 0.0f64);
    for _ in 0..10 {
        for _ in 0..times {
            (a, b) = (a.max(one()), b.max(other()));
        }
        if (a / b - 1.0).abs() < tolerance {
            break;
        }
    }
    (a, b)
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_fma_peak_is_within_ten_per_cent_of_a_loop_in_assembly() {
    use kernels_cpu::peak::Arithmetic;
    use kernels_cpu::simd::{Level, level};
    let chain = match level() {
        Level::Avx512 => separately::avx512_chain,
        Level::Avx2 => separately::avx2_chain,
        Level::Baseline => return eprintln!("not checked: this CPU has no FMA"),
    };
    let _alone = alone();
    let peak = || {
        let start = std::time::Instant::now();
        Arithmetic::F32.run(20_000) / start.elapsed().as_secs_f64()
    };
    let (ours, theirs) = best_in_turn(200, 0.1, peak, || chain(40_000));
    assert!((ours / theirs - 1.0).abs() < 0.1, "{:.1} and {:.1} GFLOP/s", ours / 1e9, theirs / 1e9);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_triad_is_within_fifteen_per_cent_of_stream_in_assembly() {
    use kernels_cpu::peak::{Traffic, traffic};
    use kernels_cpu::simd::{Level, level};
    if level() == Level::Baseline {
        return eprintln!("not checked: this CPU has no AVX2");
    }
    let _alone = alone();
    const FLOATS: usize = 16 << 20;
    // STREAM's arrays begin at cache lines, as those of the ceilings do: a register that straddles two lines costs two accesses.
    let array = |value: f32| vec![Line([value; 16]); FLOATS / 16];
    let (mut a, b, c) = (array(0.0), array(1.0), array(2.0));
    let (a, b, c): (&mut [f32], &[f32], &[f32]) =
        (bytemuck::cast_slice_mut(&mut a), bytemuck::cast_slice(&b), bytemuck::cast_slice(&c));
    // Each has the arrays in turn; both write the same.
    let shared = std::cell::RefCell::new(&mut *a);
    let bytes = 12.0 * FLOATS as f64;
    let ours = || {
        let start = std::time::Instant::now();
        traffic(Traffic::Triad, false, &mut shared.borrow_mut(), b, c, 1);
        bytes / start.elapsed().as_secs_f64()
    };
    let theirs = || bytes / separately::triad(&mut shared.borrow_mut(), b, c);
    let (ours, theirs) = best_in_turn(25, 0.15, ours, theirs);
    assert!(a.iter().all(|a| *a == 7.0));
    assert!((ours / theirs - 1.0).abs() < 0.15, "{:.1} and {:.1} GB/s", ours / 1e9, theirs / 1e9);
}

#[test]
fn ceilings_have_an_order_that_machines_have() {
    let _alone = alone();
    for device in &measured().devices {
        let c = &device.ceilings;
        let peak = |kind: &str| c.compute.iter().find(|p| p.kind == kind).map(|p| p.rate.best);
        let f32 = peak("f32").expect("every CPU adds and multiplies");
        assert!(f32 > 1e8 && f32 < 1e15, "{f32}");
        for access in [Access::Read, Access::Write, Access::Copy, Access::Triad, Access::Update] {
            let points: Vec<_> = c.memory.iter().filter(|p| p.access == access && !p.streaming).collect();
            let smallest = points.iter().map(|p| p.working_set).min().unwrap();
            let largest = points.iter().map(|p| p.working_set).max().unwrap();
            assert!(smallest <= 4 << 10 && largest >= 8 << 20, "{access:?}: {smallest} to {largest}");
            assert!(points.iter().all(|p| p.rate.best > 1e7 && p.rate.best < 1e14), "{access:?}");
        }
        let last = c.levels.last().expect("main memory is a level");
        assert_eq!((last.name.as_str(), last.holds), ("memory", None));
        assert!(c.overheads.iter().any(|o| o.kind == "call" && o.time.median < 1e-3));
        if device.threads == Some(1) {
            assert_eq!(c.strides.len(), 11);
        }
    }
}

/// Narrower numbers are never slower by design, nor nearer memories: what is not so on a busy machine is measured again.
#[test]
fn narrower_numbers_and_nearer_memories_are_faster() {
    let _alone = alone();
    let options = Options { device: "cpu".into(), filter: Some("adamw [1536".into()), quick: true };
    let mut wrong = Vec::new();
    for attempt in 0..6 {
        let fresh;
        let report = if attempt == 0 {
            measured()
        } else {
            fresh = roofline(&options, &mut ()).unwrap();
            &fresh
        };
        wrong.clear();
        for device in &report.devices {
            let c = &device.ceilings;
            let peak = |kind: &str| c.compute.iter().find(|p| p.kind == kind).map(|p| p.rate.best);
            if let (Some(bf16), Some(f32)) = (peak("bf16 dot"), peak("f32"))
                && bf16 <= 0.8 * f32
            {
                wrong.push(format!("{}: bf16 {bf16}, f32 {f32}", device.id));
            }
            let rates: Vec<f64> = c.levels.iter().map(|l| l.bytes_per_second).collect();
            if !rates.is_sorted_by(|a, b| a >= b) {
                wrong.push(format!("{}: {rates:?}", device.id));
            }
        }
        if wrong.is_empty() {
            return;
        }
    }
    panic!("{wrong:?}");
}

#[test]
fn no_dot_stands_above_its_roof_beyond_noise() {
    let _alone = alone();
    // A busy machine that is quiet for the dot alone lets it pass the roof measured before: not six times in a row.
    let options = Options { device: "cpu".into(), filter: Some("adamw [1536".into()), quick: true };
    let mut above = Vec::new();
    for attempt in 0..6 {
        let fresh;
        let report = if attempt == 0 {
            measured()
        } else {
            fresh = roofline(&options, &mut ()).unwrap();
            &fresh
        };
        above = Vec::new();
        for device in &report.devices {
            assert!(!device.dots.is_empty());
            for dot in &device.dots {
                assert!(dot.direction == Direction::Forward && dot.flops > 0.0 && dot.share > 0.0);
                if dot.roof_seconds > 1.1 * dot.time().best {
                    above.push(format!("{} {} {}", device.id, dot.case, dot.roof_seconds / dot.time().best));
                }
            }
        }
        if above.is_empty() {
            return;
        }
    }
    panic!("{above:?}");
}

#[test]
fn the_report_survives_its_file() {
    let _alone = alone();
    let report = measured();
    assert_eq!((report.schema.as_str(), report.version), (SCHEMA, VERSION));
    assert!(report.took_seconds < 60.0, "{} s", report.took_seconds);
    let text = serde_json::to_string_pretty(report).unwrap();
    let read = schema::parse(&text, Path::new("roofline.json")).unwrap();
    assert_eq!(serde_json::to_string_pretty(&read).unwrap(), text);
}

fn bench(arguments: &[&str], out: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lynx-gpu"))
        .args(["bench", "--device", "cpu", "--quick"])
        .args(arguments)
        .args(["--out".as_ref(), out.as_os_str()])
        .env("LYNX_CACHE", "")
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_filter_that_fits_nothing_lists_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let (code, message) = bench(&["--roofline", "--filter", "softmaxx"], dir.path());
    assert_eq!(code, Some(2), "{message}");
    for name in ["softmaxx", "matmul", "softmax", "training step"] {
        assert!(message.contains(name), "{message}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_before_anything_is_measured() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let start = std::time::Instant::now();
    let (code, message) = bench(&["--roofline"], &file.path().join("inside"));
    assert_eq!(code, Some(7), "{message}");
    assert!(message.contains("inside") && start.elapsed().as_secs() < 20, "{message}");
}

#[test]
fn flags_of_the_roofline_are_refused_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let (code, message) = bench(&["--filter", "softmax"], dir.path());
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("--roofline"), "{message}");
}

#[test]
fn a_model_that_is_not_there_is_an_error_that_lists_the_presets() {
    let dir = tempfile::tempdir().unwrap();
    let (code, message) = bench(&["--config", "minigpd"], dir.path());
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("minigpt"), "{message}");
}
