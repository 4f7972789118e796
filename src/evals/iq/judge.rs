//! Scores replies. The independent judge of the logic mix ([`check`]) does the work again; here is only what it does not cover:
//! reading an answer out of a reply that is otherwise wrong, the form of a reply, and steps of questions of two operations.

use super::{Cell, Expected, Item};
use crate::data::logic_mix::Kind;
use crate::data::logic_mix::arithmetic::PLACES;
use crate::data::logic_mix::check::{self, Reply, fields};
use crate::data::logic_mix::syllogism::Form;

/// What is right about a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The number after "Therefore", the verdict, or the result.
    pub answer: bool,
    /// The name of an argument's form.
    pub form: bool,
    /// Every step parses, is right, and together they lead to the right answer.
    pub faithful: bool,
    /// The reply has the form of the training texts, whatever it says.
    pub grammar: bool,
}

/// Scores the text that follows [`Item::prompt`]. What stands after the first empty line is not looked at.
pub fn judge(item: &Item, reply: &str) -> Marks {
    let (body, ended) = match reply.split_once("\n\n") {
        Some((body, _)) => (body, true),
        None => (reply, false),
    };
    let parsed = body.strip_prefix(' ').and_then(|body| check::reply(body).ok());
    let concluded = |word: &str| body.split_once(word).map(|(_, after)| after.trim_end());
    let bare = |text: &str| text.strip_suffix('.').map(str::to_owned);
    let therefore = concluded("Therefore ").and_then(bare);
    let kind = item.cell.kind();
    let (answer, form) = match &item.expected {
        Expected::Integer(n) => (therefore == Some(n.to_string()), false),
        Expected::Result(result) => (therefore.as_ref() == Some(result), false),
        Expected::Verdict { valid, form } => {
            let said = concluded("Thus ").and_then(|rest| match rest.rsplit(' ').next() {
                Some("Valid.") => Some(true),
                Some("Invalid.") => Some(false),
                _ => None,
            });
            (said == Some(*valid), body.contains(&format!("This is {form}.")))
        }
    };
    let faithful = parsed.as_ref().is_some_and(|reply| match (kind, item.cell) {
        (_, Cell::X) => answer && reply.steps.iter().all(|step| step_is_right(step)),
        (Kind::Syllogism, _) => check::syllogism(&item.question, reply).is_ok(),
        (Kind::Pseudocode, _) => check::pseudocode(&item.question, reply).is_ok(),
        _ => check::arithmetic(&item.question, reply).is_ok(),
    });
    let grammar = ended && parsed.is_some_and(|reply| well_formed(kind, &reply));
    Marks { answer, form, faithful, grammar }
}

/// A number as it is written, small enough to compute with.
fn whole(text: &str) -> Option<i64> {
    let n: i64 = text.parse().ok()?;
    (n.to_string() == text && n.abs() <= 100_000_000).then_some(n)
}

fn numbers(pattern: &str, text: &str) -> Option<Vec<i64>> {
    fields(pattern, text)?.into_iter().map(whole).collect()
}

const SUM: &str = "Sum {}: {} + {} + {} = {}, write {}, carry {}";
const SUBTRACT: &str = "Subtract {}: {} - {} - {}, write {}, borrow {}";
const NEGATE: &str = "{} is less than {}, so compute {} - {} and negate";
const MULTIPLY: &str = "Multiply {} by {}: {}, shift {}, add to {}: {}";
const LAST: &str = "Write the last carry {}";

/// The numbers of a step in a column, if it names one.
fn column(pattern: &str, step: &str) -> Option<Vec<i64>> {
    let parts = fields(pattern, step)?;
    if !PLACES.contains(&parts[0]) {
        return None;
    }
    parts[1..].iter().map(|part| whole(part)).collect()
}

/// Whether a step of arithmetic is right as it stands, whatever the question.
fn step_is_right(step: &str) -> bool {
    let digit = |n: i64| (0..10).contains(&n);
    if let Some(n) = column(SUM, step) {
        let s = n[0] + n[1] + n[2];
        return n[..2].iter().all(|&x| digit(x)) && digit(n[2]) && n[3..] == [s, s % 10, s / 10];
    }
    if let Some(n) = column(SUBTRACT, step) {
        let rest = n[0] - n[1] - n[2];
        return n[..3].iter().all(|&x| digit(x)) && n[3..] == [rest.rem_euclid(10), i64::from(rest < 0)];
    }
    if let Some(n) = numbers(NEGATE, step) {
        return n[0] < n[1] && n[2..] == [n[1], n[0]];
    }
    if let Some(n) = numbers(MULTIPLY, step) {
        let product = n[0].checked_mul(n[1]);
        let shifted = u32::try_from(n[3]).ok().and_then(|shift| 10i64.checked_pow(shift)?.checked_mul(product?));
        return digit(n[1]) && Some(n[2]) == product && shifted.and_then(|s| s.checked_add(n[4])) == Some(n[5]);
    }
    numbers(LAST, step) == Some(vec![1])
}

fn list(text: &str) -> bool {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.is_some_and(|inner| inner.is_empty() || inner.split(", ").all(|n| whole(n).is_some()))
}

/// Whether a reply is made of the steps and the conclusion that its kind has.
fn well_formed(kind: Kind, reply: &Reply) -> bool {
    let steps = &reply.steps;
    match kind {
        Kind::Syllogism => {
            let form = steps[0].strip_prefix("This is ");
            let conclusion = reply.conclusion.strip_prefix("Thus ");
            steps.len() == 2
                && form.is_some_and(|name| Form::ALL.iter().any(|f| f.name() == name))
                && conclusion.is_some_and(|c| c == "nothing follows. Invalid" || c.ends_with(". Valid"))
        }
        Kind::Pseudocode => {
            let conclusion = reply.conclusion.strip_prefix("Therefore ");
            let fits = |c: &str| {
                let index = c.strip_prefix("index ").is_some_and(|i| whole(i).is_some());
                c == "not found" || index || whole(c).is_some() || list(c)
            };
            conclusion.is_some_and(fits) && steps.iter().all(|step| step_of_algorithm(step))
        }
        _ => {
            let conclusion = reply.conclusion.strip_prefix("Therefore ");
            let known = |step: &String| {
                [SUM, SUBTRACT].iter().any(|p| column(p, step).is_some())
                    || [NEGATE, MULTIPLY, LAST].iter().any(|p| numbers(p, step).is_some())
            };
            conclusion.is_some_and(|c| whole(c).is_some()) && steps.iter().all(known)
        }
    }
}

fn step_of_algorithm(step: &str) -> bool {
    let of_numbers = [
        "start with best = {}",
        "{} > {}, best = {}",
        "{} <= {}, keep {}",
        "{} != {}, move on",
        "{} == {}, stop",
        "total = {} + {} = {}",
        "{} mod {} = {}",
        "{} is even, count = {}",
        "{} is odd, count = {}",
        "middle is {}, go right",
        "middle is {}, go left",
        "middle is {}, equal, stop",
    ];
    let of_a_list = ["iterate and swap neighbours out of order: {} swaps, {}", "push {} to the front: {}"];
    of_numbers.iter().any(|p| numbers(p, step).is_some())
        || of_a_list.iter().any(|p| fields(p, step).is_some_and(|f| whole(f[0]).is_some() && list(f[1])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::logic_mix::{SEED, check, documents};
    use crate::evals::iq::items;

    fn all(cell: Cell) -> Vec<Item> {
        items(cell, 60, SEED)
    }

    #[test]
    fn every_text_of_the_generator_has_the_form_and_its_steps_are_right() {
        for kind in Kind::SYNTHETIC {
            for document in documents(SEED, kind, 60_000) {
                let (_, reply) = check::document(&document.text).unwrap();
                assert!(well_formed(kind, &reply), "{}", document.text);
                if kind == Kind::Arithmetic {
                    assert!(reply.steps.iter().all(|s| step_is_right(s)), "{}", document.text);
                }
            }
        }
    }

    #[test]
    fn worked_replies_have_every_mark_and_a_changed_number_loses_the_right_ones() {
        for cell in Cell::ALL {
            for item in all(cell) {
                let marks = judge(&item, &item.worked);
                let form = cell.kind() == Kind::Syllogism;
                assert_eq!(marks, Marks { answer: true, form, faithful: true, grammar: true }, "{item:?}");
                if form {
                    continue;
                }
                // A wrong last digit: still well formed, no longer right.
                let at = item.worked.rfind(|c: char| c.is_ascii_digit());
                let Some(at) = at.filter(|&at| at > item.worked.find("Therefore").unwrap()) else { continue };
                let other = (item.worked.as_bytes()[at] - b'0' + 1) % 10;
                let changed = format!("{}{other}{}", &item.worked[..at], &item.worked[at + 1..]);
                let marks = judge(&item, &changed);
                assert!(!marks.answer && !marks.faithful, "{changed}");
            }
        }
    }

    #[test]
    fn a_right_answer_after_wrong_steps_is_not_faithful_and_a_reply_that_goes_on_is_cut() {
        for cell in [Cell::A3, Cell::M3x2, Cell::X] {
            for item in all(cell) {
                let Expected::Integer(n) = item.expected else { panic!() };
                let marks =
                    judge(&item, &format!(" Step 1: Sum units: 1 + 1 + 0 = 3, write 3, carry 0. Therefore {n}.\n\n"));
                assert_eq!(marks, Marks { answer: true, form: false, faithful: false, grammar: true });
                assert_eq!(judge(&item, &format!(" Therefore {n}.")), Marks { answer: true, ..Marks::default() });
                let more = format!("{}User: Calculate 1 + 1.\nCoeus: Therefore 7.\n\n", item.worked);
                assert_eq!(judge(&item, &more), judge(&item, &item.worked));
                // Never ended: everything but the form.
                let open = judge(&item, item.worked.trim_end());
                assert_eq!(open, Marks { answer: true, form: false, faithful: true, grammar: false });
            }
        }
    }

    #[test]
    fn verdict_and_form_are_scored_apart() {
        for item in all(Cell::S) {
            let Expected::Verdict { valid, form } = item.expected else { panic!() };
            let turned = if valid { "Thus nothing follows. Invalid." } else { "Thus it rains. Valid." };
            let marks = judge(&item, &format!(" Step 1: This is {form}. Step 2: So it is. {turned}\n\n"));
            assert_eq!(marks, Marks { answer: false, form: true, faithful: false, grammar: true });
            let marks = judge(&item, " Step 1: This is nonsense. Step 2: So it is. Thus it rains. Valid.\n\n");
            assert_eq!(marks, Marks { answer: valid, ..Marks::default() });
        }
    }

    /// A model can write anything.
    #[test]
    fn no_reply_makes_the_judge_panic() {
        let replies = [
            "",
            " ",
            "\n\n",
            " Step 1: ",
            " Step 1: . Therefore ..",
            " Therefore ",
            " Thus ",
            " Therefore 99999999999999999999.\n\n",
            " Step 1: Multiply 99999999 by 9: 1, shift 99999999, add to 0: 0. Therefore 1.\n\n",
            " Step 1: Multiply 100000000 by 9: 900000000, shift 18, add to 100000000: 1. Therefore 1.\n\n",
            " Step 1: Sum units: -5 + -5 + 0 = -10, write 0, carry -1. Therefore -10.\n\n",
            "\u{fffd}\u{4e2d}",
        ];
        for cell in Cell::ALL {
            for item in items(cell, 4, SEED) {
                for reply in replies {
                    let marks = judge(&item, reply);
                    assert!(!marks.answer && !marks.faithful, "{reply:?}");
                }
            }
        }
    }
}
