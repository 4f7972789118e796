//! The table and the plot in a terminal.

use super::synthetic::{self, CPU, LLVMPIPE};
use lynx_gpu::bench::{table, terminal};

#[test]
fn the_table_fits_its_width_and_says_everything() {
    let report = synthetic::report();
    for width in [80, 100, 120, 160] {
        let text = table::render(&report, width, false);
        for line in text.lines() {
            assert!(line.chars().count() <= width, "{} of {width} columns: {line}", line.chars().count());
        }
        assert!(!text.contains('\x1b'), "no colour was asked for");
        for device in &report.devices {
            assert!(text.contains(&device.id) && text.contains(&device.name));
            for dot in &device.dots {
                assert!(text.contains(&dot.operator), "no {} at width {width}", dot.operator);
            }
        }
        let (dots, rows) = (report.devices.iter().map(|d| d.dots.len()).sum::<usize>(), text.matches('\u{b1}').count());
        assert_eq!(rows, dots + 3 * 2, "one spread for each dot and way of moving");
        for part in ["from 256x256x256 on", "at no size measured", "warning: ", "corner", "tokens/s"] {
            assert!(text.contains(part), "no `{part}`");
        }
    }
    assert!(table::render(&report, 100, true).contains("\x1b[1m"));
    assert!(table::render(&report, 10, false).lines().all(|l| l.chars().count() <= 80), "narrower than it can be");
}

#[test]
fn a_row_says_the_numbers_of_its_dot() {
    let mut report = synthetic::report_of(&[&CPU], 1);
    let device = &mut report.devices[0];
    device.dots.retain(|d| d.operator == "matmul" && d.case == "1024x1024x1024");
    let dot = &mut device.dots[0];
    dot.flops = 2.147e9;
    dot.bytes = 12.58e6;
    dot.seconds.median = 10e-3;
    (dot.seconds.low, dot.seconds.high) = (9.9e-3, 10.3e-3);
    dot.share = 0.918;
    let text = table::render(&report, 100, false);
    let row = text.lines().find(|l| l.contains("1024x1024x1024  forward")).unwrap();
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(
        words,
        ["1024x1024x1024", "forward", "10.0", "ms", "\u{b1}2.0", "%", "215", "1.26", "92", "%", "f32"],
        "{row}"
    );
}

#[test]
fn the_plot_has_its_size_roofs_and_dots() {
    let report = synthetic::report();
    for (width, height) in [(80, 24), (100, 30), (160, 50)] {
        let text = terminal::plot(&report, width, height, false);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() <= height, "{} lines of {height}", lines.len());
        assert!(lines.iter().all(|l| l.chars().count() <= width), "{text}");
        assert!(text.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)), "no roof");
        for part in ["\u{25cf}", "cpu f32", "gpu:0 f32", "FLOP per byte", "GFLOP/s", "0.01", "llvmpipe"] {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
        assert!(!text.contains('\x1b'));
    }
    assert!(terminal::plot(&report, 100, 30, true).contains("\x1b["));
}

#[test]
fn a_report_of_almost_nothing_is_no_reason_to_fail() {
    let mut report = synthetic::report_of(&[&LLVMPIPE], 1);
    report.devices[0].dots.clear();
    report.devices[0].ceilings = Default::default();
    for report in [report, synthetic::report_of(&[], 1)] {
        assert!(!table::render(&report, 80, false).is_empty());
        assert!(!terminal::plot(&report, 80, 24, false).is_empty());
    }
}
