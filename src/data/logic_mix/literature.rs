//! Books as training text: cleaned to ASCII, cut into blocks at paragraph ends, and split block by block before anything is repeated.

use super::Split;
use crate::data::rng::mix;

/// Most bytes of a block.
pub const BLOCK: usize = 32 << 10;

/// The text between the markers of Project Gutenberg, if it has them, in ASCII: quotation marks, dashes and dots in their plain
/// forms, line ends as `\n`, and whatever else is not ASCII dropped.
pub fn clean(text: &str) -> String {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> = text.lines().collect();
    let marker = |line: &str, which: &str| {
        line.strip_prefix("***").is_some_and(|rest| rest.trim_start().starts_with(which)) && line.contains("GUTENBERG")
    };
    let start = lines.iter().position(|line| marker(line, "START OF")).map_or(0, |at| at + 1);
    let end = lines[start..].iter().position(|line| marker(line, "END OF")).map_or(lines.len(), |at| start + at);
    let mut ascii = String::with_capacity(text.len());
    for line in &lines[start..end] {
        for character in line.trim_end().chars() {
            match character {
                '\u{2018}' | '\u{2019}' | '\u{201b}' | '\u{2032}' => ascii.push('\''),
                '\u{201c}' | '\u{201d}' | '\u{201e}' | '\u{2033}' => ascii.push('"'),
                '\u{2010}'..='\u{2013}' | '\u{2212}' => ascii.push('-'),
                '\u{2014}' | '\u{2015}' => ascii.push_str("--"),
                '\u{2026}' => ascii.push_str("..."),
                '\u{a0}' | '\u{2009}' | '\u{202f}' => ascii.push(' '),
                '\t' | ' '..='~' => ascii.push(character),
                _ => {}
            }
        }
        ascii.push('\n');
    }
    let trimmed = ascii.trim_matches('\n');
    if trimmed.is_empty() { String::new() } else { format!("{trimmed}\n") }
}

/// Cuts a cleaned book into blocks of at most [`BLOCK`] bytes, at the last paragraph end that fits; where there is none, at the
/// last line end; where there is none either, anywhere. Together they are the book.
pub fn blocks(book: &str) -> Vec<&str> {
    let (mut rest, mut blocks) = (book, vec![]);
    while rest.len() > BLOCK {
        let head = &rest[..BLOCK];
        let cut = head.rfind("\n\n").map(|at| at + 2).or_else(|| head.rfind('\n').map(|at| at + 1)).unwrap_or(BLOCK);
        // The blank lines between paragraphs stay with the block that they end.
        let blank = rest[cut..].bytes().take_while(|&b| b == b'\n').count();
        let (block, after) = rest.split_at(cut + blank);
        blocks.push(block);
        rest = after;
    }
    if !rest.is_empty() {
        blocks.push(rest);
    }
    blocks
}

/// Which split block `block` of book `book` is in: one in twenty validates, one in twenty tests.
pub fn split_of(book: u64, block: u64) -> Split {
    match mix((book << 32).wrapping_add(block)) % 20 {
        18 => Split::Val,
        19 => Split::Test,
        _ => Split::Train,
    }
}

/// Share of the runs of `length` bytes of `held_out` that `training` has too.
pub fn overlap<'a>(
    training: impl Iterator<Item = &'a str>,
    held_out: impl Iterator<Item = &'a str>,
    length: usize,
) -> f64 {
    let runs = |text: &'a str| text.as_bytes().windows(length).map(super::draws::fnv1a64);
    let seen: std::collections::HashSet<u64> = training.flat_map(runs).collect();
    let (mut all, mut known) = (0u64, 0u64);
    for run in held_out.flat_map(runs) {
        all += 1;
        known += u64::from(seen.contains(&run));
    }
    known as f64 / (all as f64).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_quotes_dashes_and_line_ends_are_cleaned() {
        let raw = "\u{feff}Licence\r\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\r\n\r\n\u{201c}It\u{2019}s\u{201d} \u{2014} \
                   caf\u{e9}\u{2026}\r\n\r\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\r\nmore";
        assert_eq!(clean(raw), "\"It's\" -- caf...\n");
        assert_eq!(clean("*** not a marker\nplain"), "*** not a marker\nplain\n");
        assert_eq!(clean("\u{4e2d}\n"), "");
    }

    #[test]
    fn blocks_are_the_book_cut_at_paragraph_ends() {
        let paragraph = "word ".repeat(300) + "\n\n\n";
        for book in
            [paragraph.repeat(100), "line\n".repeat(20_000), "x".repeat(100_000), "short\n".into(), String::new()]
        {
            let blocks = blocks(&book);
            assert_eq!(blocks.concat(), book);
            // Blank lines at the cut may stand over the edge.
            assert!(blocks.iter().all(|b| b.len() <= BLOCK + 2 && !b.is_empty()));
        }
        assert!(blocks(&paragraph.repeat(100))[..4].iter().all(|b| b.ends_with("\n\n\n")));
    }

    #[test]
    fn one_block_in_ten_is_held_out() {
        let splits: Vec<Split> = (0..10).flat_map(|book| (0..1000).map(move |block| split_of(book, block))).collect();
        for held_out in [Split::Val, Split::Test] {
            // Binomial(10,000, 1/20): standard deviation 22; six of them either way.
            let n = splits.iter().filter(|&&s| s == held_out).count();
            assert!((369..=631).contains(&n), "{held_out:?}: {n}");
        }
    }

    #[test]
    fn overlap_counts_shared_runs() {
        assert_eq!(overlap(["abcdef"].into_iter(), ["xbcdex", "zz"].into_iter(), 4), 1.0 / 3.0);
        assert_eq!(overlap([].into_iter(), ["abcd"].into_iter(), 4), 0.0);
    }
}
