//! Words on a terminal: colour where it is wanted, lines that fit.

/// Writes ANSI sequences, or nothing but the text.
pub struct Pen {
    pub colour: bool,
}

impl Pen {
    fn sgr(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
    pub fn bold(&self, text: &str) -> String {
        self.sgr("1", text)
    }
    pub fn dim(&self, text: &str) -> String {
        self.sgr("2", text)
    }
    pub fn yellow(&self, text: &str) -> String {
        self.sgr("33", text)
    }
    pub fn green(&self, text: &str) -> String {
        self.sgr("32", text)
    }
    pub fn red(&self, text: &str) -> String {
        self.sgr("31", text)
    }

    /// By how much of its roof a kernel reaches; above the roof is an error of measurement.
    pub fn graded(&self, share: f64, text: &str) -> String {
        match share {
            s if s > 1.05 => self.sgr("35", text),
            s if s >= 0.7 => self.green(text),
            s if s >= 0.35 => self.yellow(text),
            _ => self.red(text),
        }
    }

    /// The hue of the n-th device in plots: none of them needs a dark or a light ground.
    pub fn device(&self, n: usize, text: &str) -> String {
        const HUES: [&str; 6] = ["34", "33", "32", "35", "36", "90"];
        self.sgr(HUES[n % HUES.len()], text)
    }
}

/// `text` in at most `width` columns, its end replaced by an ellipsis where it is longer.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_string();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}\u{2026}")
}

/// Broken between words into lines of at most `width` columns; a longer word is broken within.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let line = lines.last_mut().expect("never empty");
            let used = line.chars().count();
            let gap = usize::from(used > 0);
            if used + gap + word.len() <= width {
                line.extend((0..gap).map(|_| ' ').chain(word));
                break;
            }
            if used > 0 {
                lines.push(String::new());
            } else {
                let rest = word.split_off(width);
                line.extend(word);
                word = rest;
            }
        }
    }
    lines
}

/// `share` of `width` columns filled, in eighths.
pub fn bar(share: f64, width: usize) -> String {
    const EIGHTHS: [char; 7] = ['\u{258f}', '\u{258e}', '\u{258d}', '\u{258c}', '\u{258b}', '\u{258a}', '\u{2589}'];
    let eighths = (share.clamp(0.0, 1.0) * 8.0 * width as f64).round() as usize;
    let mut out = "\u{2588}".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        out.push(EIGHTHS[eighths % 8 - 1]);
    }
    let left = width - out.chars().count();
    out + &" ".repeat(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_broken_only_where_they_must() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrapped("", 5), [""]);
        assert_eq!((cut("abcdef", 6), cut("abcdef", 4)), ("abcdef".into(), "abc\u{2026}".into()));
    }

    #[test]
    fn a_bar_has_its_width_at_every_share() {
        for share in [-1.0, 0.0, 0.01, 0.5, 0.99, 1.0, 7.0, f64::NAN] {
            assert_eq!(bar(share, 10).chars().count(), 10, "{share}");
        }
    }
}
