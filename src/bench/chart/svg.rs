//! A scene as SVG: its own fonts inside, its own ground, and a second set of colours for readers whose pages are dark.

use super::font::Weight;
use super::scene::{Anchor, Fill, Marker, Paint, Scene, Shape, Stroke, Text};
use base64::Engine;
use std::fmt::Write;

pub fn write(scene: &Scene) -> String {
    let mut out = String::new();
    let (w, h) = (scene.width, scene.height);
    let _ = writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" role="img" font-family="{FAMILY}">"##
    );
    let _ = writeln!(out, "<title>{}</title>\n<desc>{}</desc>", escape(&scene.title), escape(&scene.description));
    out.push_str(&style());
    for shape in &scene.shapes {
        match shape {
            Shape::Line { points, stroke } => {
                let path: Vec<String> = points.iter().map(|&(x, y)| format!("{x:.2},{y:.2}")).collect();
                let _ = writeln!(out, r#"<polyline points="{}" fill="none"{}/>"#, path.join(" "), stroked(stroke));
            }
            Shape::Box { from, to, radius, fill, stroke } => {
                let fill = fill.map_or(r#" fill="none""#.to_string(), |(paint, opacity)| filled(paint, opacity));
                let stroke = stroke.as_ref().map(stroked).unwrap_or_default();
                let _ = writeln!(
                    out,
                    r#"<rect x="{:.2}" y="{:.2}" width="{:.2}" height="{:.2}" rx="{radius}"{fill}{stroke}/>"#,
                    from.0,
                    from.1,
                    to.0 - from.0,
                    to.1 - from.1
                );
            }
            Shape::Marker(marker) => out.push_str(&mark(marker)),
            Shape::Text(text) => out.push_str(&words(text)),
        }
    }
    out.push_str("</svg>\n");
    out
}

/// The built-in font under a name of its own: a page's "Inter" may have other widths.
const FAMILY: &str = "lynx-inter, Inter, system-ui, sans-serif";

fn style() -> String {
    let mut css = String::from("<style>\n");
    for weight in Weight::ALL {
        let font = base64::engine::general_purpose::STANDARD.encode(weight.bytes());
        let _ = writeln!(
            css,
            "@font-face{{font-family:lynx-inter;font-weight:{};src:url(data:font/ttf;base64,{font})}}",
            weight.css()
        );
    }
    // Colours of light pages stand at each shape, for viewers that know no style sheets.
    css.push_str("@media (prefers-color-scheme: dark){\n");
    for paint in Paint::all() {
        let (class, colour) = (paint.class(), paint.dark());
        let _ = writeln!(css, ".f-{class}{{fill:{colour}}} .s-{class}{{stroke:{colour}}}");
    }
    css.push_str("}\n</style>\n");
    css
}

/// A class for dark pages together with the colour for light ones. CSS wins over attributes, so the order does not matter.
fn filled(paint: Paint, opacity: f64) -> String {
    let faint = if opacity < 1.0 { format!(r#" fill-opacity="{opacity}""#) } else { String::new() };
    format!(r#" class="f-{}" fill="{}"{faint}"#, paint.class(), paint.light())
}

fn stroked(stroke: &Stroke) -> String {
    let mut out = format!(
        r#" class="s-{}" stroke="{}" stroke-width="{}""#,
        stroke.paint.class(),
        stroke.paint.light(),
        stroke.width
    );
    if stroke.opacity < 1.0 {
        let _ = write!(out, r#" stroke-opacity="{}""#, stroke.opacity);
    }
    if !stroke.dash.is_empty() {
        let dash: Vec<String> = stroke.dash.iter().map(f64::to_string).collect();
        let _ = write!(out, r#" stroke-dasharray="{}""#, dash.join(" "));
    }
    out.push_str(r#" stroke-linejoin="round""#);
    out
}

fn mark(marker: &Marker) -> String {
    let (x, y) = marker.at;
    let outline = |radius: f64, attributes: &str| {
        let marker = Marker { radius, ..marker.clone() };
        let corners = marker.corners();
        if corners.is_empty() {
            return format!(r#"<circle cx="{x:.2}" cy="{y:.2}" r="{radius}" {attributes}/>"#);
        }
        let corners: Vec<String> = corners.iter().map(|(x, y)| format!("{x:.2},{y:.2}")).collect();
        format!(r#"<polygon points="{}" {attributes}/>"#, corners.join(" "))
    };
    let (class, colour) = (marker.paint.class(), marker.paint.light());
    let (ground, white) = (Paint::Ground.class(), Paint::Ground.light());
    let line = format!(r#"stroke="{colour}" stroke-width="{:.2}" stroke-linejoin="round""#, rim(marker.radius));
    let body = match marker.fill {
        Fill::Full => outline(
            marker.radius,
            &format!(r#"class="f-{class} s-ground" fill="{colour}" stroke="{white}" stroke-width="1""#),
        ),
        Fill::Hollow => outline(marker.radius, &format!(r#"class="f-{ground} s-{class}" fill="{white}" {line}"#)),
        Fill::Tinted => {
            outline(marker.radius, &format!(r#"class="f-{ground} s-{class}" fill="{white}" {line}"#))
                + &outline(0.7 * marker.radius, &format!(r#"class="f-{class}" fill="{colour}" fill-opacity="0.45""#))
        }
        Fill::Cored => {
            outline(marker.radius, &format!(r#"class="f-{ground} s-{class}" fill="{white}" {line}"#))
                + &outline(0.35 * marker.radius, &format!(r#"class="f-{class}" fill="{colour}""#))
        }
    };
    let tip = if marker.tip.is_empty() { String::new() } else { format!("<title>{}</title>", escape(&marker.tip)) };
    let opacity = if marker.opacity < 1.0 { format!(r#" opacity="{}""#, marker.opacity) } else { String::new() };
    format!("<g{opacity}>{tip}{body}</g>\n")
}

/// Width of the line about a hollow marker.
pub fn rim(radius: f64) -> f64 {
    (0.36 * radius).clamp(1.0, 2.2)
}

fn words(text: &Text) -> String {
    let (x, y) = text.at;
    let anchor = match text.anchor {
        Anchor::Start => "",
        Anchor::Middle => r#" text-anchor="middle""#,
        Anchor::End => r#" text-anchor="end""#,
    };
    let turn = if text.turned == 0.0 {
        String::new()
    } else {
        format!(r#" transform="rotate({:.3} {x:.2} {y:.2})""#, text.turned)
    };
    let weight = match text.weight {
        Weight::Regular => String::new(),
        weight => format!(r#" font-weight="{}""#, weight.css()),
    };
    let (class, colour) = (text.paint.class(), text.paint.light());
    let halo = if text.halo {
        let (class, colour) = (Paint::Ground.class(), Paint::Ground.light());
        (
            format!(" s-{class}"),
            format!(r#" stroke="{colour}" stroke-width="{HALO}" stroke-linejoin="round" paint-order="stroke""#),
        )
    } else {
        (String::new(), String::new())
    };
    // Viewers that do not load the font inside use one of theirs, squeezed or stretched to the same length.
    let length = format!(r#" textLength="{:.2}" lengthAdjust="spacingAndGlyphs""#, text.width());
    format!(
        r#"<text x="{x:.2}" y="{y:.2}" font-size="{}"{weight}{anchor}{length} class="f-{class}{}" fill="{colour}"{}{turn}>{}</text>{}"#,
        text.size,
        halo.0,
        halo.1,
        escape(&text.text),
        "\n"
    )
}

/// Width in pixels of the line behind letters that makes their rim.
pub const HALO: f64 = 4.0;

/// XML text. Control characters, which XML 1.0 cannot hold, become spaces.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() && c != '\n' || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
