//! The letters of the picture: Inter (SIL Open Font License, `assets/fonts/OFL.txt`), cut down to Latin, so that the picture needs no
//! font of the system and has the same widths everywhere.

use std::sync::LazyLock;
use ttf_parser::{Face, GlyphId, OutlineBuilder};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    Regular,
    SemiBold,
}

const REGULAR: &[u8] = include_bytes!("../../../assets/fonts/Inter-Regular.ttf");
const SEMI_BOLD: &[u8] = include_bytes!("../../../assets/fonts/Inter-SemiBold.ttf");

impl Weight {
    pub const ALL: [Weight; 2] = [Weight::Regular, Weight::SemiBold];

    /// The font file.
    pub fn bytes(self) -> &'static [u8] {
        match self {
            Weight::Regular => REGULAR,
            Weight::SemiBold => SEMI_BOLD,
        }
    }

    /// CSS `font-weight`.
    pub fn css(self) -> u32 {
        match self {
            Weight::Regular => 400,
            Weight::SemiBold => 600,
        }
    }

    fn face(self) -> &'static Face<'static> {
        static REGULAR_FACE: LazyLock<Face<'static>> = LazyLock::new(|| parse(REGULAR));
        static SEMI_BOLD_FACE: LazyLock<Face<'static>> = LazyLock::new(|| parse(SEMI_BOLD));
        match self {
            Weight::Regular => &REGULAR_FACE,
            Weight::SemiBold => &SEMI_BOLD_FACE,
        }
    }

    /// A letter that the font has not is drawn as a question mark.
    fn glyph(self, letter: char) -> GlyphId {
        let face = self.face();
        face.glyph_index(letter).or_else(|| face.glyph_index('?')).unwrap_or_default()
    }

    /// Length of a line of text in pixels, at `size` pixels to the em.
    pub fn width(self, text: &str, size: f64) -> f64 {
        let face = self.face();
        let units: f64 = text.chars().map(|c| f64::from(face.glyph_hor_advance(self.glyph(c)).unwrap_or(0))).sum();
        units * size / f64::from(face.units_per_em())
    }

    /// Height of a capital in pixels.
    pub fn capital(self, size: f64) -> f64 {
        let face = self.face();
        f64::from(face.capital_height().unwrap_or(face.ascender())) * size / f64::from(face.units_per_em())
    }

    /// Draws the text's outline into `pen`, starting on the base line at (0, 0), y downwards.
    pub fn outline(self, text: &str, size: f64, pen: &mut dyn OutlineBuilder) {
        let face = self.face();
        let scale = (size / f64::from(face.units_per_em())) as f32;
        let mut x = 0.0;
        for letter in text.chars() {
            let glyph = self.glyph(letter);
            let mut shifted = Shifted { pen, scale, x };
            // A space has no outline.
            let _ = face.outline_glyph(glyph, &mut shifted);
            x += f32::from(face.glyph_hor_advance(glyph).unwrap_or(0)) * scale;
        }
    }
}

fn parse(bytes: &'static [u8]) -> Face<'static> {
    Face::parse(bytes, 0).expect("the font built into the program")
}

/// `text`, with its end replaced by an ellipsis where it is wider than `room`.
pub fn fitted(text: &str, size: f64, weight: Weight, room: f64) -> String {
    if weight.width(text, size) <= room {
        return text.to_string();
    }
    let mut letters: Vec<char> = text.chars().collect();
    loop {
        letters.pop();
        let shorter = format!("{}\u{2026}", letters.iter().collect::<String>().trim_end());
        if letters.is_empty() || weight.width(&shorter, size) <= room {
            return shorter;
        }
    }
}

struct Shifted<'a> {
    pen: &'a mut dyn OutlineBuilder,
    scale: f32,
    x: f32,
}

impl Shifted<'_> {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        (self.x + x * self.scale, -y * self.scale)
    }
}

impl OutlineBuilder for Shifted<'_> {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.pen.move_to(x, y);
    }
    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.pen.line_to(x, y);
    }
    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.pen.quad_to(x1, y1, x, y);
    }
    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.pen.curve_to(x1, y1, x2, y2, x, y);
    }
    fn close(&mut self) {
        self.pen.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_letter_the_picture_uses_is_in_the_font() {
        let used =
            "0123456789 abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:;/()%+-\u{b7}\u{d7}\u{2026}\u{2013}";
        for weight in Weight::ALL {
            for letter in used.chars() {
                assert!(weight.face().glyph_index(letter).is_some(), "{weight:?} has no {letter:?}");
            }
            assert!(
                weight.width("\u{6f22}", 10.0) > 0.0,
                "a letter that is not there takes the room of a question mark"
            );
        }
    }

    #[test]
    fn long_text_is_cut_to_its_room() {
        let text = "NVIDIA GeForce RTX 4060 Laptop GPU";
        assert_eq!(fitted(text, 14.0, Weight::Regular, 1000.0), text);
        for room in [20.0, 60.0, 120.0] {
            let short = fitted(text, 14.0, Weight::Regular, room);
            assert!(short.ends_with('\u{2026}') && Weight::Regular.width(&short, 14.0) <= room, "{short}");
        }
    }
}
