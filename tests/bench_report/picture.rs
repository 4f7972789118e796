//! The picture, as a scene, as SVG and as PNG.

use super::synthetic::{self, CPU, CPU1, GPU, LLVMPIPE};
use lynx_gpu::bench::chart::{self, scene::Text};
use lynx_gpu::bench::report::{Ceilings, Report};

fn reports() -> Vec<Report> {
    let mut empty = synthetic::report_of(&[&CPU], 5);
    empty.devices[0].dots.clear();
    empty.devices[0].ceilings = Ceilings::default();
    let mut nothing = synthetic::report_of(&[], 5);
    nothing.crossovers.clear();
    vec![
        synthetic::report(),
        synthetic::report_of(&[&CPU1, &CPU, &LLVMPIPE], 2),
        synthetic::report_of(&[&CPU1], 3),
        synthetic::report_of(&[&GPU, &LLVMPIPE], 4),
        empty,
        nothing,
    ]
}

#[test]
fn no_words_cover_other_words() {
    for report in reports() {
        let scene = chart::scene(&report);
        let texts: Vec<&Text> = scene.texts().collect();
        for (i, a) in texts.iter().enumerate() {
            for b in &texts[i + 1..] {
                assert!(!a.area().overlaps(&b.area()), "`{}` and `{}` overlap", a.text, b.text);
            }
            assert!(a.area().inside((0.0, 0.0), (scene.width, scene.height)), "`{}` leaves the page", a.text);
        }
    }
}

#[test]
fn dots_stand_within_the_axes_and_no_number_covers_a_numbered_dot() {
    for report in reports() {
        let scene = chart::scene(&report);
        let (from, to) = scene.axes;
        let numbered = scene.markers().filter(|m| m.radius > 5.5 && !m.tip.is_empty());
        for marker in numbered {
            for text in scene.texts() {
                assert!(!text.area().overlaps(&marker.area()), "`{}` covers `{}`", text.text, marker.tip);
            }
        }
        for marker in scene.markers().filter(|m| !m.tip.is_empty()) {
            let (x, y) = marker.at;
            assert!(x >= from.0 && x <= to.0 && y >= from.1 && y <= to.1, "`{}` at {x}, {y}", marker.tip);
        }
    }
}

/// Every numbered dot has its number beside it, and the side panel says what the numbers are.
#[test]
fn every_numbered_dot_has_its_number_near() {
    let report = synthetic::report();
    let scene = chart::scene(&report);
    let (from, to) = scene.axes;
    let near = |at: (f64, f64)| {
        scene.texts().any(|t| {
            t.text.parse::<usize>().is_ok()
                && t.at.0 > from.0
                && t.at.0 < to.0
                && t.at.1 < to.1
                && (t.at.0 - at.0).hypot(t.at.1 - at.1) < 40.0
        })
    };
    let numbered: Vec<_> = scene.markers().filter(|m| m.radius > 5.5 && !m.tip.is_empty()).collect();
    assert!(numbered.len() >= 40, "{} numbered dots", numbered.len());
    for marker in numbered {
        assert!(near(marker.at), "no number near `{}`", marker.tip);
    }
    for operator in ["matmul", "softmax", "attention", "adamw", "embedding"] {
        assert!(scene.texts().any(|t| t.text == operator), "{operator} is not in the list");
    }
}

#[test]
fn a_compute_bound_dot_stands_under_its_flat_roof_by_its_share() {
    let report = synthetic::report_of(&[&CPU], 1);
    let scene = chart::scene(&report);
    let dot =
        report.devices[0].dots.iter().find(|d| d.operator == "matmul" && d.case.starts_with("2048x2048")).unwrap();
    let marker = scene.markers().find(|m| m.tip.starts_with("matmul 2048x2048x2048, forward")).unwrap();
    // A tick label one decade apart gives the scale.
    let tick = |label: &str| {
        let ticks = scene.texts().filter(|t| t.text == label && t.at.0 < scene.axes.0.0);
        ticks.map(|t| t.at.1 - 5.5).next().unwrap()
    };
    let (hundred, ten) = (tick("100"), tick("10"));
    let drawn = 100e9 * 10f64.powf((hundred - marker.at.1) / (ten - hundred));
    let speed = dot.flops / dot.time().median;
    assert!((drawn / speed - 1.0).abs() < 1e-6, "drawn at {drawn}, measured {speed}");
}

#[test]
fn the_svg_is_xml_that_names_every_device_for_light_and_dark_pages() {
    for mut report in reports() {
        if let Some(device) = report.devices.first_mut() {
            device.name = "R&D <prototype> \"x\"".into();
        }
        let svg = chart::svg(&report).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap_or_else(|e| panic!("not XML: {e}"));
        let texts: Vec<&str> =
            document.descendants().filter(|n| n.has_tag_name("text")).filter_map(|n| n.text()).collect();
        for device in &report.devices {
            assert!(texts.iter().any(|t| *t == device.id), "no {}", device.id);
            // A software device is named without its versions.
            let start: String = device.name.split(" (").next().unwrap_or_default().chars().take(12).collect();
            assert!(texts.iter().any(|t| t.starts_with(&start)), "no {}", device.name);
        }
        assert!(svg.contains("prefers-color-scheme: dark"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "a coordinate is no number");
    }
}

#[test]
fn the_png_has_its_size_a_light_ground_and_every_hue() {
    let report = synthetic::report();
    let scene = chart::scene(&report);
    let bytes = chart::png(&report).unwrap();
    let picture = tiny_skia::Pixmap::decode_png(&bytes).unwrap();
    assert_eq!(
        (picture.width() as f64, picture.height() as f64),
        (scene.width * chart::SCALE, scene.height * chart::SCALE)
    );
    let count = |wanted: (u8, u8, u8)| {
        picture.pixels().iter().filter(|p| (p.red(), p.green(), p.blue()) == wanted && p.alpha() == 255).count()
    };
    let all = (picture.width() * picture.height()) as usize;
    assert!(count((255, 255, 255)) > all / 2, "the ground is light");
    // Blue, vermilion, green: the roofs of the CPU and two GPUs.
    for hue in [(0x00, 0x72, 0xb2), (0xd5, 0x5e, 0x00), (0x00, 0x8a, 0x64)] {
        assert!(count(hue) > 2000, "{hue:?}: {} pixels", count(hue));
    }
}

#[test]
fn any_report_can_be_drawn() {
    for report in reports() {
        assert!(tiny_skia::Pixmap::decode_png(&chart::png(&report).unwrap()).is_ok());
    }
    // Written for a person to look at; nothing depends on it.
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    for (i, report) in reports().iter().enumerate() {
        std::fs::write(folder.join(format!("roofline-{i}.svg")), chart::svg(report).unwrap()).unwrap();
        std::fs::write(folder.join(format!("roofline-{i}.png")), chart::png(report).unwrap()).unwrap();
    }
}
