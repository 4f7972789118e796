//! How the dashboard looks. Colours are the terminal's own, so that it reads on any background.

use super::super::meter::{human_bytes, human_duration};
use super::dashboard::{Dashboard, Plot};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Paragraph, Wrap};

const TRAIN: Color = Color::Blue;
const VALIDATION: Color = Color::Yellow;

pub(super) fn draw(dashboard: &Dashboard, frame: &mut Frame) {
    let [header, progress, middle, bottom, footer] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(3),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [chart, side] = Layout::horizontal([Constraint::Fill(2), Constraint::Max(44)]).areas(middle);
    let [sample, log] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(bottom);

    draw_header(dashboard, frame, header);
    draw_progress(dashboard, frame, progress);
    draw_chart(dashboard, frame, chart);
    draw_numbers(dashboard, frame, side);
    draw_sample(dashboard, frame, sample);
    draw_log(dashboard, frame, log);
    let keys = "q stop and save   p pause   arrows switch the plot   Ctrl-C twice quit at once";
    frame.render_widget(Paragraph::new(keys).dim(), footer);
}

fn draw_header(dashboard: &Dashboard, frame: &mut Frame, area: Rect) {
    let mut spans = vec![
        Span::from(dashboard.info.summary.clone()).bold(),
        Span::from(format!(
            "  {} parameters on {}  {}",
            dashboard.info.parameters, dashboard.info.device, dashboard.run
        )),
    ];
    if dashboard.stopping {
        spans.insert(0, Span::from("STOPPING ").bold().red());
    } else if dashboard.paused {
        spans.insert(0, Span::from("PAUSED ").bold().yellow());
    }
    frame.render_widget(Paragraph::new(Line::from(spans)), area);
}

fn draw_progress(dashboard: &Dashboard, frame: &mut Frame, area: Rect) {
    let step = dashboard.last.map_or(dashboard.first_step, |last| last.record.step);
    let left = dashboard.last.and_then(|last| last.remaining);
    let left = left.map_or_else(String::new, |left| format!(", {} left", human_duration(left)));
    let ratio = if dashboard.steps == 0 { 0.0 } else { (step as f64 / dashboard.steps as f64).clamp(0.0, 1.0) };
    let label = format!("step {step} of {}{left}", dashboard.steps);
    frame.render_widget(Gauge::default().ratio(ratio).label(label).gauge_style(Style::new().fg(TRAIN)), area);
}

/// Ends of an axis that hold all values, with room where they are all alike.
fn bounds(values: impl Iterator<Item = f64>) -> [f64; 2] {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return [0.0, 1.0];
    }
    let margin = if high > low { 0.05 * (high - low) } else { (0.1 * high.abs()).max(1e-9) };
    [low - margin, high + margin]
}

fn draw_chart(dashboard: &Dashboard, frame: &mut Frame, area: Rect) {
    let plot = dashboard.plot;
    // A Braille cell is two dots wide.
    let columns = 2 * area.width as usize;
    let main = dashboard.curve(plot).thinned(columns);
    let validation = if plot == Plot::Loss { dashboard.validation.thinned(columns) } else { Vec::new() };
    let y = bounds(main.iter().chain(&validation).map(|point| point.1));
    let last = main.iter().chain(&validation).map(|point| point.0).fold(1.0, f64::max);
    let first = main.iter().chain(&validation).map(|point| point.0).fold(last, f64::min);

    let line = |name, points, color| {
        let dataset = Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line);
        dataset.name(name).style(Style::new().fg(color)).data(points)
    };
    let mut datasets = vec![line(if plot == Plot::Loss { "train" } else { plot.title() }, &main[..], TRAIN)];
    if plot == Plot::Loss {
        datasets.push(line("validation", &validation[..], VALIDATION));
    }
    let number = |value: f64| {
        if plot == Plot::LearningRate { format!("{value:.1e}") } else { format!("{value:.3}") }
    };
    let middle = (y[0] + y[1]) / 2.0;
    let chart = Chart::new(datasets)
        .block(Block::bordered().title(format!(" {} ", plot.title())))
        .x_axis(
            Axis::default()
                .bounds([first.min(last - 1e-9), last])
                .labels([format!("{first:.0}"), format!("step {last:.0}")])
                .style(Style::new().dim()),
        )
        .y_axis(
            Axis::default().bounds(y).labels([number(y[0]), number(middle), number(y[1])]).style(Style::new().dim()),
        );
    frame.render_widget(chart, area);
}

fn row<'a>(name: impl Into<String>, value: impl Into<String>) -> Line<'a> {
    Line::from(vec![Span::from(format!("{:<18}", name.into())).dim(), Span::from(value.into())])
}

fn draw_numbers(dashboard: &Dashboard, frame: &mut Frame, area: Rect) {
    let mut lines = Vec::new();
    if let Some(last) = &dashboard.last {
        let r = &last.record;
        lines.push(row("train loss", format!("{:.4}", r.loss)));
        lines.push(row("learning rate", format!("{:.3e}", r.lr)));
        let clipped = if r.clipped { " (clipped)" } else { "" };
        lines.push(row("gradient norm", format!("{:.3}{clipped}", r.grad_norm)));
        lines.push(row("tokens/s", format!("{:.0}", r.tokens_per_second)));
        if let Some(share) = last.roof_share {
            lines.push(row("share of roof", format!("{:.1} %", 100.0 * share)));
        }
        lines.push(row("tokens", r.tokens.to_string()));
    }
    if let Some(eval) = &dashboard.eval {
        lines.push(row("validation loss", format!("{:.4}", eval.loss)));
        lines.push(row("perplexity", format!("{:.3}", eval.perplexity)));
    }
    if let Some(best) = &dashboard.best {
        lines.push(row("best", format!("{:.4} at step {}", best.loss, best.step)));
    }
    if !dashboard.info.memory.is_empty() {
        lines.push(Line::default());
        lines.push(Line::from("memory").bold());
        let total = dashboard.info.memory.iter().map(|(_, bytes)| bytes).sum();
        lines.extend(dashboard.info.memory.iter().map(|(name, bytes)| row(name.clone(), human_bytes(*bytes))));
        lines.push(row("total", human_bytes(total)));
    }
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" now ")), area);
}

fn draw_sample(dashboard: &Dashboard, frame: &mut Frame, area: Rect) {
    let (title, text) = match &dashboard.sample {
        Some(sample) => {
            let prompt = Span::from(printable(&sample.prompt)).dim();
            let lines = printable(&sample.text);
            let mut lines = lines.lines().map(|line| Line::from(line.to_string()));
            let first = lines.next().unwrap_or_default();
            let mut text = vec![Line::from([vec![prompt], first.spans].concat())];
            text.extend(lines);
            (format!(" sample at step {} ", sample.step), text)
        }
        None => (" sample ".to_string(), Vec::new()),
    };
    let paragraph = Paragraph::new(text).wrap(Wrap { trim: false });
    frame.render_widget(paragraph.block(Block::bordered().title(title)), area);
}

/// A model's text must not move the cursor or change colours.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

fn draw_log(dashboard: &Dashboard, frame: &mut Frame, area: Rect) {
    let height = area.height.saturating_sub(2) as usize;
    let skip = dashboard.log.len().saturating_sub(height);
    let lines: Vec<Line> = dashboard.log.iter().skip(skip).map(|line| Line::from(line.as_str())).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" log ")), area);
}
