//! `loss.svg`: training and validation loss over steps, in colours that read on light and dark pages.

use super::metrics::Record;
use crate::error::{Error, Result};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use std::ops::Range;

/// Axes, grid and words: a grey of middle lightness on a transparent ground.
const GREY: RGBColor = RGBColor(128, 128, 128);
const TRAIN: RGBColor = RGBColor(56, 132, 214);
const VALIDATION: RGBColor = RGBColor(226, 112, 26);

/// How losses are spaced on the vertical axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Linear,
    Logarithmic,
}

/// (step, loss) points.
pub(super) type Curve = Vec<(f64, f64)>;

/// The curves of the training steps, averaged down to at most `points` of them, and of the validations.
pub(super) fn curves(records: &[Record], points: usize) -> (Curve, Curve) {
    let (mut train, mut validation) = (Curve::new(), Curve::new());
    for record in records {
        match record {
            Record::Train(r) => train.push((r.step as f64, r.loss)),
            Record::Eval(r) => validation.push((r.step as f64, r.loss)),
            Record::Sources(_) | Record::Sample(_) => {}
        }
    }
    let chunk = train.len().div_ceil(points.max(1)).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
    };
    (train.chunks(chunk).map(mean).collect(), validation)
}

/// Draws both curves. With nothing measured yet, the axes alone.
pub fn loss_svg(records: &[Record], title: &str, scale: Scale) -> Result<String> {
    let (train, validation) = curves(records, 600);
    let positive = |&&(_, loss): &&(f64, f64)| loss.is_finite() && (scale == Scale::Linear || loss > 0.0);
    let points = || train.iter().chain(&validation).filter(positive);
    let low = points().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = points().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = if low <= high { (low, high) } else { (1.0, 2.0) };
    let last_step = points().map(|p| p.0).fold(1.0, f64::max);
    let range = match scale {
        Scale::Linear => {
            let margin = (0.05 * (high - low)).max(0.01 * high.abs()).max(1e-6);
            low - margin..high + margin
        }
        Scale::Logarithmic => low / 1.1..high * 1.1,
    };
    // A few validations are hard to see as a line alone.
    let dots = validation.len() <= 40;
    let series = vec![
        Series { name: "train", points: train, color: TRAIN, dots: false },
        Series { name: "validation", points: validation, color: VALIDATION, dots },
    ];
    let plot = Plot { title, steps: 0.0..last_step, series };
    match scale {
        Scale::Linear => plot.draw(range),
        Scale::Logarithmic => plot.draw(range.log_scale()),
    }
    .map_err(|e| Error::Failed(format!("cannot draw the loss curve: {e}")))
}

/// Hues of one lightness, after Okabe and Ito (2008), that read on light and dark pages; more curves than these repeat them.
const HUES: [RGBColor; 9] = [
    TRAIN,
    VALIDATION,
    RGBColor(20, 158, 115),
    RGBColor(204, 102, 153),
    RGBColor(176, 136, 0),
    RGBColor(128, 128, 200),
    RGBColor(196, 64, 64),
    RGBColor(64, 160, 176),
    RGBColor(140, 110, 80),
];

/// Several validation curves, each a name and (step, loss) points, on one chart.
pub fn comparison_svg(curves: &[(String, Vec<(f64, f64)>)], title: &str) -> Result<String> {
    let finite = |points: &Curve| points.iter().copied().filter(|p| p.1.is_finite()).collect::<Curve>();
    let series: Vec<Series> = curves
        .iter()
        .enumerate()
        .map(|(i, (name, points))| {
            let points = finite(points);
            Series { name, dots: points.len() <= 40, points, color: HUES[i % HUES.len()] }
        })
        .collect();
    let points = || series.iter().flat_map(|s| &s.points);
    let low = points().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = points().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = if low <= high { (low, high) } else { (1.0, 2.0) };
    let margin = (0.05 * (high - low)).max(0.01 * high.abs()).max(1e-6);
    let steps = 0.0..points().map(|p| p.0).fold(1.0, f64::max);
    let plot = Plot { title, steps, series };
    plot.draw::<RangedCoordf64>((low - margin..high + margin).into())
        .map_err(|e| Error::Failed(format!("cannot draw the curves: {e}")))
}

struct Series<'a> {
    name: &'a str,
    points: Curve,
    color: RGBColor,
    /// Points are drawn too.
    dots: bool,
}

struct Plot<'a> {
    title: &'a str,
    steps: Range<f64>,
    series: Vec<Series<'a>>,
}

impl Plot<'_> {
    fn draw<Y>(&self, losses: Y) -> std::result::Result<String, Box<dyn std::error::Error>>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (800, 450)).into_drawing_area();
            let words = |size: i32| ("sans-serif", size).into_font().color(&GREY);
            let mut chart = ChartBuilder::on(&root)
                .caption(self.title, words(20))
                .margin(12)
                .x_label_area_size(44)
                .y_label_area_size(64)
                .build_cartesian_2d::<RangedCoordf64, Y>(self.steps.clone().into(), losses)?;
            chart
                .configure_mesh()
                .bold_line_style(GREY.mix(0.35))
                .light_line_style(TRANSPARENT)
                .axis_style(GREY)
                .label_style(words(14))
                .axis_desc_style(words(15))
                .x_desc("step")
                .y_desc("loss (nats per token)")
                .x_label_formatter(&|step| format!("{step:.0}"))
                .y_label_formatter(&|loss| format!("{loss:.2}"))
                .draw()?;
            for Series { name, points, color, dots } in &self.series {
                let style = color.stroke_width(2);
                chart
                    .draw_series(LineSeries::new(points.iter().copied(), style))?
                    .label(*name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
                if *dots {
                    chart.draw_series(points.iter().map(|&p| Circle::new(p, 3, color.filled())))?;
                }
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .label_font(words(15))
                .border_style(GREY.mix(0.35))
                .draw()?;
            root.present()?;
        }
        Ok(svg)
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::{EvalRecord, TrainRecord};
    use super::*;

    fn records(n: u64) -> Vec<Record> {
        let mut out = Vec::new();
        for step in 1..=n {
            let loss = 1.0 + 3.0 / step as f64;
            let r = TrainRecord {
                step,
                loss,
                lr: 0.0,
                grad_norm: 0.0,
                clipped: false,
                tokens: 0,
                tokens_per_second: 0.0,
                seconds: 0.0,
            };
            out.push(Record::Train(r));
            if step % 100 == 0 {
                let r = EvalRecord { step, loss, perplexity: 0.0, tokens: 0, whole_split: true, seconds: 0.0 };
                out.push(Record::Eval(r));
            }
        }
        out
    }

    #[test]
    fn both_curves_are_drawn_on_both_scales_without_a_background() {
        for scale in [Scale::Linear, Scale::Logarithmic] {
            let svg = loss_svg(&records(1000), "minigpt <&>", scale).unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            for part in ["#3884D6", "#E2701A", "validation", "nats per token", "minigpt &lt;&amp;&gt;"] {
                assert!(svg.contains(part), "no {part}");
            }
            assert!(
                !svg.contains("#FFFFFF") && !svg.contains("#000000"),
                "black or white vanishes on half of all pages"
            );
        }
    }

    #[test]
    fn any_number_of_measurements_can_be_drawn() {
        for n in [0, 1, 2] {
            for scale in [Scale::Linear, Scale::Logarithmic] {
                assert!(loss_svg(&records(n), "t", scale).unwrap().contains("</svg>"));
            }
        }
        let long = loss_svg(&records(100_000), "t", Scale::Linear).unwrap();
        assert!(long.len() < 200_000, "{} bytes", long.len());
    }

    #[test]
    fn thinning_keeps_the_mean() {
        let records = records(999);
        let mean = |points: &[(f64, f64)]| points.iter().map(|p| p.1).sum::<f64>() / points.len() as f64;
        let (full, _) = curves(&records, 999);
        let (thin, validation) = curves(&records, 111);
        assert_eq!((full.len(), thin.len(), validation.len()), (999, 111, 9));
        assert!((mean(&full) - mean(&thin)).abs() < 1e-12);
    }
}
