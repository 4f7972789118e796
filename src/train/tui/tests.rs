use super::super::metrics::{EvalRecord, SampleRecord, TrainRecord};
use super::super::model::ModelInfo;
use super::super::observer::StepEvent;
use super::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::path::Path;

fn busy() -> Dashboard {
    let mut dashboard = Dashboard::default();
    let info = ModelInfo {
        summary: "gpt, 2 layers".into(),
        parameters: 103_680,
        device: "Radeon 780M".into(),
        memory: vec![("weights".into(), 414_720), ("optimiser".into(), 829_440)],
        roof_tokens_per_second: Some(20_000.0),
    };
    dashboard.update(&Event::Start { info: &info, run: Path::new("runs/a"), step: 0, steps: 200 });
    for step in 1..=100 {
        let record = TrainRecord {
            step,
            loss: 1.0 + 3.0 / step as f64,
            lr: 3e-4,
            grad_norm: 1.25,
            clipped: true,
            tokens: 256 * step,
            tokens_per_second: 12_345.0,
            seconds: 1.0,
        };
        let remaining = Some(Duration::from_secs(65));
        let event = StepEvent {
            record,
            steps: 200,
            took: Duration::from_millis(80),
            remaining,
            roof_share: Some(0.617),
            log: false,
        };
        dashboard.update(&Event::Step(event));
    }
    for step in [50, 100] {
        let eval = EvalRecord { step, loss: 1.5, perplexity: 4.482, tokens: 9, whole_split: true, seconds: 0.1 };
        dashboard.update(&Event::Eval { record: &eval, is_best: step == 50 });
    }
    let text = "trabajo\x1b[31m / I work\nsecond line".into();
    let sample = SampleRecord { step: 100, prompt: "es:".into(), text, temperature: 0.8 };
    dashboard.update(&Event::Sample(&sample));
    dashboard.update(&Event::Saved { path: Path::new("runs/a/checkpoints/step-100"), is_best: true });
    dashboard.update(&Event::Message("hello there"));
    dashboard
}

fn screen(dashboard: &Dashboard, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(dashboard, frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let rows = (0..height).map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>());
    rows.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_screen_shows_everything_at_a_common_size() {
    let screen = screen(&busy(), 120, 40);
    for part in [
        "gpt, 2 layers",
        "103680 parameters on Radeon 780M",
        "runs/a",
        "step 100 of 200, 1m 05s left",
        " loss ",
        "validation",
        "1.250 (clipped)",
        "12345",
        "61.7 %",
        "1.5000 at step 50",
        "405.0 KiB",
        "1.2 MiB",
        "sample at step 100",
        "es:trabajo",
        "second line",
        "saved step-100 (best)",
        "hello there",
        "q stop and save",
    ] {
        assert!(screen.contains(part), "no {part:?} in\n{screen}");
    }
    assert!(screen.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)), "no curve in\n{screen}");
    assert!(!screen.contains('\x1b'), "generated text must not control the terminal");
}

#[test]
fn every_plot_can_be_shown_before_and_after_the_first_step() {
    let mut busy = busy();
    let mut empty = Dashboard::default();
    for plot in Plot::ALL {
        (busy.plot, empty.plot) = (plot, plot);
        assert!(screen(&busy, 100, 30).contains(&format!(" {} ", plot.title())));
        assert!(screen(&empty, 100, 30).contains("step 0 of 0"));
    }
}

#[test]
fn no_terminal_is_too_small() {
    let dashboard = busy();
    for (width, height) in [(1, 1), (2, 3), (10, 4), (20, 10), (44, 8), (300, 5)] {
        screen(&dashboard, width, height);
    }
}

#[test]
fn keys_stop_pause_and_switch() {
    let control = Control::default();
    let mut dashboard = Dashboard::default();
    let mut key = |code| press(KeyEvent::new(code, KeyModifiers::NONE), &mut dashboard, &control);
    assert_eq!(key(KeyCode::Char('x')), Press::Handled);
    assert!(!control.is_paused() && control.stop_requested().is_none());
    key(KeyCode::Char('p'));
    assert!(control.is_paused());
    key(KeyCode::Char('p'));
    assert!(!control.is_paused());
    key(KeyCode::Right);
    key(KeyCode::Down);
    key(KeyCode::Left);
    key(KeyCode::Char('q'));
    assert_eq!(dashboard.plot, Plot::LearningRate);
    assert_eq!(control.stop_requested(), Some(130));
}

#[test]
fn ctrl_c_stops_and_a_second_one_quits() {
    let control = Control::default();
    let mut dashboard = Dashboard::default();
    let mut ctrl_c = || press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL), &mut dashboard, &control);
    assert_eq!(ctrl_c(), Press::Handled);
    assert_eq!(control.stop_requested(), Some(130));
    assert_eq!(ctrl_c(), Press::QuitNow);
}

#[test]
fn paused_and_stopping_are_said_in_the_header() {
    let mut dashboard = busy();
    dashboard.paused = true;
    assert!(screen(&dashboard, 100, 30).starts_with("PAUSED"));
    dashboard.stopping = true;
    assert!(screen(&dashboard, 100, 30).starts_with("STOPPING"));
}
