use super::*;
use proptest::prelude::*;

const TOY: [&str; 5] = ["I work", "I work", "I worked", "he works", "he worked"];

fn toy() -> BpeTokenizer {
    let options = BpeOptions { vocab_size: 264, specials: SpecialTokens::none(), pre_split: PreSplit::None };
    BpeTokenizer::train(TOY, &options).unwrap()
}

fn merges_of(t: &BpeTokenizer) -> Vec<String> {
    t.merge_bytes().map(|(l, r)| String::from_utf8([l, r].concat()).unwrap()).collect()
}

/// Training as it is defined: recount everything for every merge.
fn naive_merges(lines: &[String], wanted: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut units: Vec<Vec<Vec<u8>>> = lines.iter().map(|l| l.bytes().map(|b| vec![b]).collect()).collect();
    let mut seen: std::collections::HashSet<Vec<u8>> = (0..=255u8).map(|b| vec![b]).collect();
    let mut merges = vec![];
    while merges.len() < wanted {
        let mut counts: std::collections::BTreeMap<(Vec<u8>, Vec<u8>), u64> = Default::default();
        for pair in units.iter().flat_map(|u| u.windows(2)) {
            *counts.entry((pair[0].clone(), pair[1].clone())).or_default() += 1;
        }
        counts.retain(|(l, r), _| !seen.contains(&[l.clone(), r.clone()].concat()));
        // The map is in byte order and `rev` with `max_by_key` (last maximum wins) keeps the smallest pair.
        let Some((best, _)) = counts.into_iter().rev().max_by_key(|(_, n)| *n) else { break };
        let joined = [best.0.clone(), best.1.clone()].concat();
        seen.insert(joined.clone());
        for unit in &mut units {
            let mut at = 0;
            while at + 1 < unit.len() {
                if unit[at] == best.0 && unit[at + 1] == best.1 {
                    unit.splice(at..at + 2, [joined.clone()]);
                }
                at += 1;
            }
        }
        merges.push(best);
    }
    merges
}

/// Encoding as it is defined: every merge in training order, over the whole unit.
fn naive_encode(t: &BpeTokenizer, text: &str) -> Vec<u32> {
    let mut symbols: Vec<u32> = text.bytes().map(|b| t.specials.len() as u32 + u32::from(b)).collect();
    for (rank, &(left, right)) in t.merges.iter().enumerate() {
        let mut at = 0;
        while at + 1 < symbols.len() {
            if (symbols[at], symbols[at + 1]) == (left, right) {
                symbols.splice(at..at + 2, [t.specials.len() as u32 + 256 + rank as u32]);
            }
            at += 1;
        }
    }
    symbols
}

#[test]
fn toy_merges_are_the_golden_ones() {
    assert_eq!(merges_of(&toy()), [" w", " wo", " wor", " work", "I work", "e work", "ed", "he work"]);
}

#[test]
fn ties_go_to_the_smallest_left_then_right_bytes() {
    let options = BpeOptions { vocab_size: 258, specials: SpecialTokens::none(), pre_split: PreSplit::None };
    // (b,a), (a,c), (c,b), (a,b) ... every pair once: the smallest is (a,b).
    assert_eq!(merges_of(&BpeTokenizer::train(["bac", "cb", "ab", "ad"], &options).unwrap()), ["ab", "ac"]);
}

#[test]
fn overlapping_pairs_are_counted_and_replaced_from_the_left() {
    let options = BpeOptions { vocab_size: 257, specials: SpecialTokens::none(), pre_split: PreSplit::None };
    let t = BpeTokenizer::train(["aaa", "bb"], &options).unwrap();
    assert_eq!(merges_of(&t), ["aa"]);
    assert_eq!(t.encode("aaaaa"), [256, 256, 97]);
}

#[test]
fn the_720_sentences_give_the_recorded_lengths_at_512() {
    let cells = crate::data::verbs::cells();
    let texts: Vec<&str> = cells.iter().flat_map(|c| [c.english.as_str(), c.spanish.as_str()]).collect();
    for (pre_split, tokens) in [(PreSplit::None, 1443), (PreSplit::Whitespace, 2012)] {
        let options = BpeOptions { pre_split, ..BpeOptions::default() };
        let t = BpeTokenizer::train(texts.iter().copied(), &options).unwrap();
        assert_eq!(t.vocab_size(), 512);
        assert_eq!(texts.iter().map(|text| t.encode(text).len()).sum::<usize>(), tokens);
        // All twenty verbs are single tokens or the end of one.
        for verb in crate::data::verbs::grammar::VERBS.iter().map(|v| v.english) {
            assert!(t.tokens.iter().any(|token| token.ends_with(verb.as_bytes())), "{verb}");
        }
    }
}

#[test]
fn vocabulary_size_is_exact_until_the_pairs_run_out() {
    let text = "the cat sat on the mat; the cat ate the rat\n".repeat(3);
    for wanted in [260, 270, 280] {
        let options = BpeOptions { vocab_size: wanted, ..BpeOptions::default() };
        assert_eq!(BpeTokenizer::train([text.as_str()], &options).unwrap().vocab_size(), wanted);
    }
    let options = BpeOptions { vocab_size: 1000, ..BpeOptions::default() };
    // One merge for each length from 2 to 4 of the only line.
    assert_eq!(BpeTokenizer::train(["abcd"], &options).unwrap().vocab_size(), 260 + 3);
    let options = BpeOptions { vocab_size: 259, ..BpeOptions::default() };
    assert!(BpeTokenizer::train(["abcd"], &options).unwrap_err().to_string().contains("at least 260"));
}

#[test]
fn special_tokens_are_whole_and_nothing_merges_across_them() {
    let line = "ab<|endoftext|>ab<|endoftext|>ab";
    let options = BpeOptions { vocab_size: 300, ..BpeOptions::default() };
    let t = BpeTokenizer::train([line; 5], &options).unwrap();
    assert_eq!(merges_of(&t), ["ab"]);
    assert_eq!(t.encode(line), [260, 1, 260, 1, 260]);
    assert_eq!(t.encode("a<|pad|>b"), [4 + 97, 0, 4 + 98]);
}

#[test]
fn training_text_is_composed_but_encoding_is_lossless() {
    let options = BpeOptions { vocab_size: 270, specials: SpecialTokens::none(), pre_split: PreSplit::None };
    let decomposed = "man\u{303}ana";
    let t = BpeTokenizer::train([decomposed, decomposed], &options).unwrap();
    assert_eq!(t.encode("ma\u{f1}ana").len(), 1);
    let ids = t.encode(decomposed);
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| t.token_bytes(id).unwrap().to_vec()).collect();
    assert_eq!(bytes, decomposed.as_bytes());
}

#[test]
fn white_space_units_follow_the_pattern() {
    let units = |text| PreSplit::Whitespace.units(text);
    assert_eq!(units(" to work  a\n b\t"), [" to", " work", "  ", "a", "\n ", "b", "\t"]);
    assert_eq!(units("a \u{a0}b"), ["a", " \u{a0}", "b"]);
    assert_eq!(units(""), Vec::<&str>::new());
}

#[test]
fn damaged_merges_are_refused_with_their_line() {
    let load = |text: &str| BpeTokenizer::from_merges_text(text, SpecialTokens::none(), PreSplit::None);
    let t = toy();
    assert_eq!(load(&t.merges_text()).unwrap().merges, t.merges);
    for (text, what) in [
        ("61", "line 1"),
        ("61 6g", "line 1"),
        ("61 62\n61 62\n", "merge 2"),
        ("6162 63\n", "merge 1"),
        ("61 \n", "line 1"),
    ] {
        assert!(load(text).unwrap_err().to_string().contains(what), "{text}");
    }
}

proptest! {
    #[test]
    fn incremental_training_equals_recounting(lines in prop::collection::vec("[abñ ]{0,12}", 1..12), wanted in 0usize..30) {
        let counts = lines.iter().fold(HashMap::new(), |mut counts, line| {
            *counts.entry(line.as_bytes().to_vec()).or_default() += 1;
            counts
        });
        prop_assert_eq!(train::merges(counts, wanted), naive_merges(&lines, wanted));
    }

    #[test]
    fn the_queue_gives_what_merges_in_training_order_give(lines in prop::collection::vec("[ab ]{0,12}", 1..12), text in "[abc ]{0,30}") {
        let options = BpeOptions { vocab_size: 300, ..BpeOptions::default() };
        let t = BpeTokenizer::train(lines.iter().map(String::as_str), &options).unwrap();
        prop_assert_eq!(t.encode(&text), naive_encode(&t, &text));
    }
}
