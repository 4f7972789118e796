use super::super::{SEED, documents};
use super::*;

#[test]
fn fields_are_what_stands_for_the_braces() {
    assert_eq!(fields("{} mod {} = {}", "7 mod 4 = 3"), Some(vec!["7", "4", "3"]));
    assert_eq!(fields("How to sum {}?", "How to sum [1, 2]?"), Some(vec!["[1, 2]"]));
    assert_eq!(fields("sum {}?", "sum 1"), None);
    assert_eq!(fields("same", "same"), Some(vec![]));
    assert_eq!(fields("same", "same and more"), None);
}

#[test]
fn every_generated_document_is_right() {
    for kind in Kind::SYNTHETIC {
        for document in documents(SEED, kind, 300_000) {
            check(kind, &document.text).unwrap_or_else(|e| panic!("{}\n{e}", document.text));
        }
    }
}

/// 30,000 documents of the three kinds where nothing else is asked for: `LYNX_DOCUMENTS=1000000` takes a minute in release.
#[test]
fn documents_far_into_the_stream_are_made_and_are_right() {
    use rayon::prelude::*;
    let count: u64 = std::env::var("LYNX_DOCUMENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(30_000);
    eprintln!("{count} documents (LYNX_DOCUMENTS)");
    for kind in Kind::SYNTHETIC {
        (0..count / 3).into_par_iter().for_each(|index| {
            let document = super::super::document(SEED, kind, 50_000 + index);
            check(kind, &document.text).unwrap_or_else(|e| panic!("{}\n{e}", document.text));
        });
    }
}

/// Changing any one digit of an answer makes it wrong: the judge reads every number.
#[test]
fn any_changed_digit_is_found() {
    for kind in [Kind::Arithmetic, Kind::Pseudocode] {
        for document in documents(SEED, kind, 20_000) {
            let answer = document.text.find("Coeus").unwrap();
            for at in (answer..document.text.len()).filter(|&at| document.text.as_bytes()[at].is_ascii_digit()) {
                let mut bytes = document.text.clone().into_bytes();
                bytes[at] = b'0' + (bytes[at] - b'0' + 3) % 10;
                let changed = String::from_utf8(bytes).unwrap();
                assert!(check(kind, &changed).is_err(), "{changed}");
            }
        }
    }
}

/// Anyone can write a corpus by hand: no text makes the judge panic or try for ever.
#[test]
fn texts_that_nobody_generates_are_refused() {
    let product =
        (2..40).map(|i| format!("Step {i}: Multiply 5 by 0: 0, shift {}, add to 30: 30. ", i - 1)).collect::<String>();
    let premises: String = (0..40).map(|i| format!("If a{i} then b{i}. ")).collect();
    for (kind, text) in [
        (Kind::Pseudocode, "User: How to sort [] in ascending order?\nCoeus: Step 1: iterate and swap neighbours out of order: 0 swaps, []. Therefore [].\n\n".to_owned()),
        (Kind::Pseudocode, "User: How to find the maximum of []?\nCoeus: Step 1: x. Therefore 0.\n\n".into()),
        (Kind::Pseudocode, "User: How to find gcd(9223372036854775807, 2)?\nCoeus: Step 1: x. Therefore 1.\n\n".into()),
        (Kind::Pseudocode, "User: How to find gcd(-9, 0)?\nCoeus: Step 1: x. Therefore 1.\n\n".into()),
        (Kind::Arithmetic, format!("User: Calculate 5 * 6.\nCoeus: Step 1: Multiply 5 by 6: 30, shift 0, add to 0: 30. {product}Therefore 30.\n\n")),
        (Kind::Arithmetic, "User: Calculate 9223372036854775807 + 1.\nCoeus: Step 1: x. Therefore 1.\n\n".into()),
        (Kind::Syllogism, format!("User: {premises}We know a0. Does it follow that b0?\nCoeus: Step 1: This is modus ponens. Step 2: x. Thus b0. Valid.\n\n")),
        (Kind::Syllogism, "User: Does it follow that ?\nCoeus: Step 1: x. Thus . Valid.\n\n".into()),
        (Kind::Arithmetic, "\u{4e2d}\n\n".into()),
    ] {
        assert!(check(kind, &text).is_err(), "{text}");
    }
}

#[test]
fn wrong_verdicts_are_found() {
    for document in documents(SEED, Kind::Syllogism, 50_000) {
        let turned = if document.text.contains("Invalid.") {
            let asked = validity(super::document(&document.text).unwrap().0).unwrap().1;
            document.text.replace("nothing follows. Invalid.", &format!("{asked}. Valid."))
        } else {
            let at = document.text.find("Thus ").unwrap();
            format!("{}Thus nothing follows. Invalid.\n\n", &document.text[..at])
        };
        assert!(check(Kind::Syllogism, &turned).is_err(), "{turned}");
    }
}
