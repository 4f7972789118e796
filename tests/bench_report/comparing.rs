//! Two reports side by side.

use super::synthetic::{self, CPU, CPU1, GPU, LLVMPIPE, Noise, timings};
use lynx_gpu::bench::compare::{Verdict, compare};
use lynx_gpu::bench::report::{Report, Stat};

/// The same machine measured twice: every dot's true time is the same, samples have the jitter of a machine in use, and each run of a
/// dot is late as a whole by a few percent now and then.
fn measured(seed: u64, jitter: f64, whole_run: f64, samples: usize) -> Report {
    let mut report = synthetic::report_of(&[&CPU1, &CPU, &GPU], 7);
    let mut noise = Noise(seed);
    for device in &mut report.devices {
        for dot in &mut device.dots {
            for seconds in std::iter::once(&mut dot.seconds).chain(&mut dot.device_seconds) {
                let late = 1.0 + whole_run * noise.normal().abs();
                *seconds = timings(&mut noise, seconds.best * late, jitter, samples);
            }
        }
    }
    report
}

#[test]
fn two_runs_of_the_same_machine_hardly_ever_differ() {
    for (jitter, whole_run, samples) in [(0.01, 0.0, 30), (0.02, 0.01, 20), (0.05, 0.02, 15), (0.15, 0.03, 9)] {
        let (mut slower, mut alarms, mut all) = (0, 0, 0);
        for seed in 0..20 {
            let old = measured(1000 + seed, jitter, whole_run, samples);
            let new = measured(5000 + seed, jitter, whole_run, samples);
            let comparison = compare(&old, &new).unwrap();
            slower += comparison.slower() + comparison.faster();
            alarms += usize::from(comparison.regressed());
            all += comparison.devices.iter().map(|d| d.dots.len()).sum::<usize>();
            for device in &comparison.devices {
                let mean = device.geometric_mean.unwrap();
                assert!((mean - 1.0).abs() < 0.03, "{}: {mean}", device.id);
            }
        }
        let told =
            format!("jitter {jitter}, {samples} samples: {slower} of {all} false, {alarms} of 20 comparisons alarmed");
        assert!(slower * 500 <= all && alarms <= 2, "{told}");
    }
}

#[test]
fn a_kernel_that_became_a_fifth_slower_is_found_and_a_faster_one_praised() {
    let old = measured(1, 0.02, 0.01, 20);
    let mut new = measured(2, 0.02, 0.01, 20);
    let scaled =
        |s: Stat, by: f64| Stat { median: s.median * by, low: s.low * by, high: s.high * by, best: s.best * by, ..s };
    for (operator, by) in [("softmax", 1.2), ("matmul", 0.7)] {
        for dot in new.devices[1].dots.iter_mut().filter(|d| d.operator == operator) {
            dot.seconds = scaled(dot.seconds, by);
        }
    }
    let comparison = compare(&old, &new).unwrap();
    let device = &comparison.devices[1];
    for change in &device.dots {
        let wanted = match change.name.split(' ').next() {
            Some("softmax") => Verdict::Slower,
            Some("matmul") => Verdict::Faster,
            _ => Verdict::Same,
        };
        assert_eq!(change.verdict, wanted, "{change:?}");
    }
    assert!(comparison.regressed());
    let error = comparison.verdict().unwrap_err();
    assert_eq!(error.exit_code(), 9);
    let softmax = device.dots.iter().filter(|c| c.name.starts_with("softmax")).count();
    assert!(error.to_string().starts_with(&format!("{softmax} of ")), "{error}");
    let words = comparison.render(100, false);
    assert!(
        words.contains("slower") && words.contains("faster") && words.contains("softmax 64x50257 forward"),
        "{words}"
    );
    assert!(words.lines().all(|l| l.chars().count() <= 100), "{words}");
}

/// A median that wandered while the best sample stayed is another process's doing.
#[test]
fn a_late_median_with_the_same_best_is_noise() {
    let old = synthetic::report_of(&[&CPU], 3);
    let mut new = old.clone();
    let seconds = &mut new.devices[0].dots[0].seconds;
    seconds.median *= 1.3;
    seconds.high *= 1.3;
    assert!(!compare(&old, &new).unwrap().regressed());
    let seconds = &mut new.devices[0].dots[0].seconds;
    seconds.best *= 1.3;
    seconds.low *= 1.3;
    assert!(compare(&old, &new).unwrap().regressed());
}

#[test]
fn devices_match_by_key_and_what_one_report_lacks_is_listed() {
    let old = synthetic::report_of(&[&CPU1, &CPU, &LLVMPIPE], 3);
    let mut new = synthetic::report_of(&[&CPU1, &CPU, &GPU], 3);
    new.quick = true;
    new.host.power = Some("battery".into());
    new.devices[0].dots.remove(0);
    new.devices[1].dots[0].case = "7x7x7".into();
    let c = compare(&old, &new).unwrap();
    assert_eq!(c.devices.len(), 2);
    assert_eq!((c.only_old.len(), c.only_new.len()), (1, 1));
    assert!(c.only_old[0].contains("llvmpipe") && c.only_new[0].contains("4060"));
    assert_eq!(c.devices[0].removed, ["matmul 256x256x256 forward"]);
    assert_eq!(c.devices[1].added, ["matmul 7x7x7 forward"]);
    assert_eq!(c.notes.len(), 2, "{:?}", c.notes);
    assert!(c.notes[0].contains("quick") && c.notes[1].contains("battery"));
    assert!(!c.regressed());
    let words = c.render(90, false);
    for part in ["only in the old report", "only in the new report", "removed (1)", "added (1)", "note: power was AC"] {
        assert!(words.contains(part), "no `{part}`\n{words}");
    }
}

#[test]
fn nothing_in_common_is_an_error_that_lists_both_sides() {
    let (old, new) = (synthetic::report_of(&[&CPU], 3), synthetic::report_of(&[&GPU], 3));
    let error = compare(&old, &new).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let message = error.to_string();
    assert!(message.contains(&old.devices[0].key) && message.contains(&new.devices[0].key), "{message}");
    // Another driver is another device.
    let mut updated = new.clone();
    updated.devices[0].driver = "NVIDIA 580.1".into();
    updated.devices[0].key = "NVIDIA GeForce RTX 4060 Laptop GPU NVIDIA 580.1".into();
    assert!(compare(&new, &updated).unwrap_err().to_string().contains("580.1"));
    // The same device under two filters that share nothing.
    let (mut a, mut b) = (old.clone(), old.clone());
    for report in [&mut a, &mut b] {
        report.devices[0].ceilings = Default::default();
    }
    a.filter = Some("matmul".into());
    b.filter = Some("softmax".into());
    a.devices[0].dots.retain(|d| d.operator == "matmul");
    b.devices[0].dots.retain(|d| d.operator == "softmax");
    let message = compare(&a, &b).unwrap_err().to_string();
    assert!(message.contains("`matmul`") && message.contains("`softmax`"), "{message}");
}

#[test]
fn a_machine_that_became_slower_is_said_to_have() {
    let old = synthetic::report_of(&[&CPU], 3);
    let mut new = old.clone();
    for peak in &mut new.devices[0].ceilings.compute {
        let r = &mut peak.rate;
        (r.median, r.low, r.high, r.best) = (0.7 * r.median, 0.7 * r.low, 0.7 * r.high, 0.7 * r.best);
    }
    let c = compare(&old, &new).unwrap();
    let slower = c.devices[0].ceilings.iter().filter(|c| c.verdict == Verdict::Slower).count();
    assert_eq!(slower, CPU.peaks.len());
    assert!(!c.regressed(), "ceilings are no kernels");
    assert!(
        c.render(100, false).contains("the machine itself changed (f32 peak 0.70 times"),
        "{}",
        c.render(100, false)
    );
    // A kernel that is slower by no more than the machine (1 / 0.7) is not blamed; one that is twice as slow is.
    for (by, blamed) in [(1.35, 0), (2.0, 1)] {
        let mut worse = new.clone();
        let s = &mut worse.devices[0].dots[0].seconds;
        (s.median, s.low, s.high, s.best) = (by * s.median, by * s.low, by * s.high, by * s.best);
        assert_eq!(compare(&old, &worse).unwrap().slower(), blamed, "{by} times slower");
    }
}
