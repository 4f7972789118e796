use super::super::{StreamDecoder, Tokenizer};
use super::*;
use std::sync::Arc;

fn piece(text: &str, score: f32, kind: PieceKind) -> Piece {
    Piece { text: text.into(), score, kind }
}

/// `<unk>`, `<s>`, `</s>`, then these; with all bytes at the end if asked.
fn spm(pieces: &[(&str, f32)], bytes: bool) -> SpmTokenizer {
    use PieceKind::*;
    let mut all = vec![piece("<unk>", 0.0, Unknown), piece("<s>", 0.0, Control), piece("</s>", 0.0, Control)];
    all.extend(pieces.iter().map(|&(text, score)| piece(text, score, Normal)));
    if bytes {
        all.extend((0..=255u8).map(|b| piece(&format!("<0x{b:02X}>"), 0.0, Byte)));
    }
    let roles = Roles { bos: Some(1), eos: vec![2], add_bos: Some(true), ..Roles::default() };
    SpmTokenizer::new(all, SpmOptions { add_space_prefix: true, mark_is_space: true }, roles).unwrap()
}

const TOY: [(&str, f32); 9] = [
    (" ", -9.0),
    ("a", -9.0),
    ("b", -9.0),
    ("c", -9.0),
    ("ab", -1.0),
    ("bc", -0.5),
    (" a", -2.0),
    ("abc", -3.0),
    ("aa", -2.0),
];

#[test]
fn the_best_score_is_joined_first_and_the_leftmost_of_equals() {
    let t = spm(&TOY, true);
    // bc before ab; then the space and a before a and bc, whose text together is a piece too.
    assert_eq!(t.encode("abc", true).unwrap(), [9, 8]);
    assert_eq!(t.encode("cabc", true).unwrap(), [3, 6, 10]);
    // Of two pairs with the same score the left one.
    assert_eq!(t.encode("aaa", true).unwrap(), [9, 11]);
    assert!(t.encode("", true).unwrap().is_empty());
}

#[test]
fn what_is_no_piece_becomes_its_bytes_or_the_unknown_token_once() {
    let t = spm(&TOY, true);
    let ids: Vec<u32> = "é".bytes().map(|b| 12 + u32::from(b)).collect();
    assert_eq!(t.encode("é", true).unwrap(), [vec![3], ids].concat());
    assert_eq!(spm(&TOY, false).encode("éüa", true).unwrap(), [3, 0, 4]);
    let none = SpmTokenizer::new(
        vec![piece("a", 0.0, PieceKind::Normal)],
        SpmOptions { add_space_prefix: false, mark_is_space: true },
        Roles::default(),
    );
    let message = none.unwrap().encode("aé", true).unwrap_err().to_string();
    assert!(message.contains("'é' (U+00E9)"), "{message}");
}

#[test]
fn control_tokens_in_a_text_are_tokens_only_where_asked_for() {
    let t = spm(&TOY, true);
    assert_eq!(t.encode("a</s>b", true).unwrap(), [9, 2, 3, 5]);
    let plain = t.encode("a</s>b", false).unwrap();
    assert!(!plain.iter().any(|&id| t.is_special(id)), "{plain:?}");
    assert_eq!(Tokenizer::Spm(Arc::new(t)).decode(&plain).unwrap(), "a</s>b");
}

#[test]
fn the_first_space_is_the_prefix_at_the_beginning_of_a_text_and_text_elsewhere() {
    let t = Tokenizer::Spm(Arc::new(spm(&TOY, true)));
    let ids = t.encode("a a").unwrap();
    assert_eq!(ids, [9, 9]);
    assert_eq!(t.decode(&ids).unwrap(), "a a");
    assert_eq!(t.decode_with(&[1, 9, 9], true).unwrap(), "a a");
    assert_eq!(t.decode(&[1, 9, 9]).unwrap(), "<s>a a");
    let after = |before: &[u32]| {
        let mut decoder = StreamDecoder::after(&t, true, before);
        ids.iter().map(|&id| decoder.push(id).unwrap()).collect::<String>()
    };
    assert_eq!([after(&[]), after(&[1]), after(&[1, 9])], ["a a", "a a", " a a"]);
}

#[test]
fn any_text_comes_back_with_bytes_in_the_vocabulary() {
    let t = Tokenizer::Spm(Arc::new(spm(&TOY, true)));
    for text in ["", " ", "  ", "a", " a", "  a  b ", "né\n\t🦊", "\u{0}\u{7f}", "abc".repeat(100).as_str()] {
        assert_eq!(t.decode(&t.encode(text).unwrap()).unwrap(), text);
        let mut decoder = StreamDecoder::new(&t, false);
        let mut streamed: String = t.encode(text).unwrap().iter().map(|&id| decoder.push(id).unwrap()).collect();
        streamed += &decoder.finish().unwrap();
        assert_eq!(streamed, text);
    }
}

#[test]
fn a_vocabulary_that_means_nothing_is_refused() {
    let options = SpmOptions { add_space_prefix: true, mark_is_space: true };
    let refused = |pieces: Vec<Piece>, roles: Roles| SpmTokenizer::new(pieces, options, roles).unwrap_err().to_string();
    use PieceKind::*;
    let none = Roles::default;
    assert!(refused(vec![], none()).contains("empty"));
    assert!(refused(vec![piece("a", f32::NAN, Normal)], none()).contains("piece 0 'a': its score is not a number"));
    assert!(refused(vec![piece("x", 0.0, Byte)], none()).contains("<0x00>"));
    assert!(refused(vec![piece("a", 0.0, Normal), piece("a", 1.0, Normal)], none()).contains("same text as piece 0"));
    assert!(refused(vec![piece("<0x41>", 0.0, Byte), piece("<0x41>", 0.0, Normal)], none()).contains("0x41"));
    let roles = Roles { eos: vec![7], ..none() };
    assert!(refused(vec![piece("a", 0.0, Normal)], roles).contains("special token id 7"));
}

#[test]
fn llama2c_files_that_end_early_or_lie_are_refused() {
    let mut data = 7u32.to_le_bytes().to_vec();
    for text in
        ["<unk>", "\n<s>\n", "\n</s>\n"].map(str::to_owned).into_iter().chain((0..=255).map(|b| format!("<0x{b:02X}>")))
    {
        data.extend(0f32.to_le_bytes());
        data.extend((text.len() as u32).to_le_bytes());
        data.extend(text.as_bytes());
    }
    let t = SpmTokenizer::from_llama2c_bytes(&data).unwrap();
    assert_eq!(t.vocab_size(), 259);
    assert_eq!(t.encode("A", true).unwrap(), [3 + 32, 3 + 65]);
    let entries = t.to_llama2c().unwrap();
    assert_eq!((entries.len(), entries[1].0.as_slice()), (259, "\n<s>\n".as_bytes()));
    for length in 0..data.len() {
        assert!(SpmTokenizer::from_llama2c_bytes(&data[..length]).is_err(), "{length}");
    }
    data[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(SpmTokenizer::from_llama2c_bytes(&data).unwrap_err().to_string().contains("ends within a piece"));
}
