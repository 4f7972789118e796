//! An independent judge of worked answers: it parses a text and does the work again, step by step, without the generator's code.
//! Generated corpora are checked with it, and so are the answers of trained models.

use super::Kind;

/// Words of a reply, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Without their numbers and without the full stop at the end.
    pub steps: Vec<String>,
    /// "Therefore 12", without the full stop.
    pub conclusion: String,
}

/// Fills the `{}` of a pattern: `fields("{} mod {} = {}", "7 mod 4 = 3")` is `7`, `4`, `3`. Each takes as little as it can.
pub fn fields<'a>(pattern: &str, text: &'a str) -> Option<Vec<&'a str>> {
    let mut literals = pattern.split("{}");
    let mut rest = text.strip_prefix(literals.next()?)?;
    let mut found = vec![];
    let mut literals = literals.peekable();
    while let Some(literal) = literals.next() {
        let last = literals.peek().is_none();
        let end = match (literal, last) {
            ("", true) => rest.len(),
            (literal, true) => rest.len().checked_sub(literal.len()).filter(|&at| rest.ends_with(literal) && at > 0)?,
            (literal, false) => rest.find(literal)?,
        };
        found.push(&rest[..end]);
        rest = &rest[end + literal.len()..];
    }
    rest.is_empty().then_some(found)
}

fn numbers(pattern: &str, text: &str) -> Option<Vec<i64>> {
    fields(pattern, text)?.into_iter().map(whole).collect()
}

/// Larger numbers are in no text that the generator writes: sums and products of these stay far from overflow, and trying all
/// divisors ends soon.
const LARGEST: i64 = 100_000_000;

/// A number as it is written: no sign but a minus, no needless zeros.
fn whole(text: &str) -> Option<i64> {
    let n: i64 = text.parse().ok()?;
    (n.to_string() == text && n.abs() <= LARGEST).then_some(n)
}

fn list(text: &str) -> Option<Vec<i64>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    if inner.is_empty() { Some(vec![]) } else { inner.split(", ").map(whole).collect() }
}

/// Takes a document apart: the question, and the reply.
pub fn document(text: &str) -> Result<(&str, Reply), String> {
    let text = text.strip_suffix("\n\n").ok_or("does not end with an empty line")?;
    let (question, answer) = text.split_once("\nCoeus: ").ok_or("has no line of Coeus")?;
    let question = question.strip_prefix("User: ").ok_or("does not begin with User:")?;
    Ok((question, reply(answer)?))
}

/// Takes an answer apart: `Step 1: .. Step 2: .. Therefore ..`
pub fn reply(answer: &str) -> Result<Reply, String> {
    let mut steps = vec![];
    let mut rest = answer.strip_prefix("Step 1: ").ok_or("the answer does not begin with step 1")?;
    loop {
        let next = format!(" Step {}: ", steps.len() + 2);
        if let Some((step, after)) = rest.split_once(&next) {
            steps.push(step);
            rest = after;
            continue;
        }
        let at = [" Therefore ", " Thus "].into_iter().filter_map(|word| rest.find(word)).min();
        let at = at.ok_or("the answer has no conclusion")?;
        steps.push(&rest[..at]);
        rest = &rest[at + 1..];
        break;
    }
    let bare = |text: &str| text.strip_suffix('.').map(str::to_owned).ok_or(format!("{text:?} has no full stop"));
    let steps = steps.into_iter().map(bare).collect::<Result<_, _>>()?;
    Ok(Reply { steps, conclusion: bare(rest)? })
}

/// Checks a generated document from its question to its conclusion.
pub fn check(kind: Kind, text: &str) -> Result<(), String> {
    if kind == Kind::Recall {
        return super::recall::check(text);
    }
    let (question, reply) = document(text)?;
    match kind {
        Kind::Literature | Kind::Recall => Ok(()),
        Kind::Arithmetic => arithmetic(question, &reply),
        Kind::Syllogism => syllogism(question, &reply),
        Kind::Pseudocode => pseudocode(question, &reply),
    }
}

fn right(condition: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(what()) }
}

fn concludes(reply: &Reply, answer: &str) -> Result<(), String> {
    let said = &reply.conclusion;
    right(said.strip_prefix("Therefore ") == Some(answer), || format!("concludes {said:?}, but it is {answer}"))
}

/// Operator and operands of a question of arithmetic.
pub fn operands(question: &str) -> Option<(char, i64, i64)> {
    for symbol in ['+', '-', '*'] {
        for pattern in ["Calculate {} ? {}.", "What is {} ? {}?", "Compute {} ? {}."] {
            let (head, tail) = pattern.split_once(" ? ")?;
            if let Some(n) = numbers(&format!("{head} {symbol} {tail}"), question) {
                return Some((symbol, n[0], n[1]));
            }
        }
    }
    let two = |pattern| numbers(pattern, question);
    two("Add {} and {}.")
        .map(|n| ('+', n[0], n[1]))
        .or_else(|| two("Subtract {} from {}.").map(|n| ('-', n[1], n[0])))
        .or_else(|| two("Multiply {} by {}.").map(|n| ('*', n[0], n[1])))
}

fn place_value(name: &str) -> Option<i64> {
    let names = ["units", "tens", "hundreds", "thousands", "ten-thousands", "hundred-thousands"];
    names.iter().position(|&n| n == name).map(|at| 10i64.pow(at as u32))
}

/// Checks a worked sum, difference or product of non-negative numbers.
pub fn arithmetic(question: &str, reply: &Reply) -> Result<(), String> {
    let (symbol, a, b) =
        operands(question).ok_or_else(|| format!("{question:?} asks for no sum, difference or product"))?;
    match symbol {
        '+' => columns(a, b, &reply.steps, '+')?,
        '-' => {
            let mut steps = &reply.steps[..];
            if a < b {
                let said = steps
                    .split_first()
                    .map(|(first, rest)| (numbers("{} is less than {}, so compute {} - {} and negate", first), rest));
                let Some((Some(n), rest)) = said else {
                    return Err("the first step does not turn the difference round".into());
                };
                right(n == [a, b, b, a], || format!("turns {n:?} round, not {a} and {b}"))?;
                steps = rest;
            }
            columns(a.max(b), a.min(b), steps, '-')?;
        }
        _ => {
            let (mut total, mut left, mut shift) = (0, b, 0);
            for step in &reply.steps {
                let n = numbers("Multiply {} by {}: {}, shift {}, add to {}: {}", step)
                    .ok_or_else(|| format!("{step:?} is no step of a product"))?;
                right(left > 0 || shift == 0, || format!("{step:?} comes after the last digit"))?;
                let by = left % 10;
                let next = total + a * by * 10i64.pow(shift);
                right(n == [a, by, a * by, i64::from(shift), total, next], || format!("{step:?} is wrong"))?;
                (total, left, shift) = (next, left / 10, shift + 1);
            }
            right(left == 0 && shift > 0, || "the product ends before its last digit".into())?;
        }
    }
    let answer = match symbol {
        '+' => a + b,
        '-' => a - b,
        _ => a * b,
    };
    concludes(reply, &answer.to_string())
}

/// Column by column: what is written down so far plus what is carried (or borrowed) is the answer up to that column.
fn columns(a: i64, b: i64, steps: &[String], symbol: char) -> Result<(), String> {
    let answer = if symbol == '+' { a + b } else { a - b };
    let places = a.max(b).to_string().len();
    let (mut value, mut moved) = (1, 0);
    for (i, step) in steps.iter().enumerate() {
        if i == places && symbol == '+' {
            right(numbers("Write the last carry {}", step) == Some(vec![moved]) && moved > 0, || {
                format!("{step:?} is wrong")
            })?;
            moved = 0;
            continue;
        }
        let (x, y) = (a / value % 10, b / value % 10);
        let pattern = if symbol == '+' {
            "Sum {}: {} + {} + {} = {}, write {}, carry {}"
        } else {
            "Subtract {}: {} - {} - {}, write {}, borrow {}"
        };
        let parts = fields(pattern, step).ok_or_else(|| format!("{step:?} is no step of this"))?;
        right(i < places && place_value(parts[0]) == Some(value), || format!("{step:?} is about another place"))?;
        let n: Vec<i64> = parts[1..]
            .iter()
            .map(|p| whole(p))
            .collect::<Option<_>>()
            .ok_or_else(|| format!("{step:?} has no numbers"))?;
        let written = answer / value % 10;
        let (expected, over) = if symbol == '+' {
            let s = x + y + moved;
            (vec![x, y, moved, s, written, s / 10], s / 10)
        } else {
            let borrow = i64::from(x - y - moved < 0);
            (vec![x, y, moved, written, borrow], borrow)
        };
        right(n == expected, || format!("{step:?} is wrong"))?;
        moved = over;
        value *= 10;
    }
    right(steps.len() >= places && moved == 0, || "it ends before its last column".into())
}

/// A statement about clauses: its truth in a world that gives each clause a truth value.
struct Clause<'a> {
    name: &'a str,
    holds: bool,
}

/// Takes a negation off, if there is one, so that what remains is in `known`.
fn clause<'a>(text: &str, known: &[&'a str]) -> Option<Clause<'a>> {
    let of = |holds, plain: &str| known.iter().find(|&&k| k == plain).map(|&name| Clause { name, holds });
    of(true, text)
        .or_else(|| of(false, text.strip_prefix("it is not the case that ")?))
        .or_else(|| of(false, &text.replacen(" is not ", " is ", 1)))
        .or_else(|| of(false, &text.replacen(" are not ", " are ", 1)))
}

/// Whether an argument is valid, by trying all worlds; and what it asks for.
pub fn validity(question: &str) -> Option<(bool, &str)> {
    let (premises, asked) = ["Does it follow that ", "Can we conclude that ", "Is it certain that "]
        .iter()
        .find_map(|ask| question.split_once(&format!(" {ask}")))?;
    let asked = asked.strip_suffix('?')?;
    let premises: Vec<&str> = premises.strip_suffix('.')?.split(". ").collect();
    if premises[0].starts_with("If ") {
        let implications: Vec<Vec<&str>> = premises.iter().filter_map(|p| fields("If {} then {}", p)).collect();
        let names: Vec<&str> = implications.concat();
        let given: Vec<Clause> = premises
            .iter()
            .filter_map(|p| p.strip_prefix("We know "))
            .map(|p| clause(p, &names))
            .collect::<Option<_>>()?;
        if implications.len() + given.len() != premises.len() {
            return None;
        }
        // All worlds are tried, and no argument is about more clauses than this.
        if names.len() > 8 {
            return None;
        }
        let goal = clause(asked, &names)?;
        let valid = (0..1u32 << names.len()).all(|world| {
            let value = |name: &str| names.iter().position(|&n| n == name).is_some_and(|at| world >> at & 1 == 1);
            let premises = implications.iter().all(|i| !value(i[0]) || value(i[1]))
                && given.iter().all(|g| value(g.name) == g.holds);
            !premises || value(goal.name) == goal.holds
        });
        return Some((valid, asked));
    }
    // A world says which kinds of thing exist, a kind being a set of the three names.
    let statement = |text: &str| -> Option<(char, String, String)> {
        let mut letters = text.chars();
        let text = letters.next()?.to_lowercase().chain(letters).collect::<String>();
        for (quantifier, pattern) in [('a', "all {} are {}"), ('s', "some {} are {}"), ('n', "no {} are {}")] {
            if let Some(f) = fields(pattern, &text) {
                return Some((quantifier, f[0].into(), f[1].into()));
            }
        }
        None
    };
    let all: Vec<_> = premises.iter().copied().chain([asked]).map(statement).collect::<Option<Vec<_>>>()?;
    let mut names: Vec<&str> = vec![];
    for (_, x, y) in &all {
        for name in [x, y] {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
    }
    if names.len() > 3 {
        return None;
    }
    let place = |name: &str| names.iter().position(|&n| n == name).expect("collected above");
    let valid = (0..256u32).all(|world| {
        let holds = |(quantifier, x, y): &(char, String, String)| {
            let mut things = (0..8u32).filter(|kind| world >> kind & 1 == 1 && kind >> place(x) & 1 == 1);
            let both = |kind: u32| kind >> place(y) & 1 == 1;
            match quantifier {
                'a' => things.all(both),
                's' => things.any(both),
                _ => !things.any(both),
            }
        };
        let (conclusion, premises) = all.split_last().expect("a conclusion");
        !premises.iter().all(holds) || holds(conclusion)
    });
    Some((valid, asked))
}

/// Checks the verdict on an argument, and that form and verdict fit.
pub fn syllogism(question: &str, reply: &Reply) -> Result<(), String> {
    let (valid, asked) = validity(question).ok_or_else(|| format!("{question:?} is no argument"))?;
    let expected = if valid { format!("Thus {asked}. Valid") } else { "Thus nothing follows. Invalid".into() };
    right(reply.conclusion == expected, || format!("concludes {:?}, not {expected:?}", reply.conclusion))?;
    let form =
        reply.steps.first().and_then(|step| step.strip_prefix("This is ")).ok_or("the first step names no form")?;
    let sound =
        ["modus ponens", "modus tollens", "hypothetical syllogism", "Barbara", "Celarent", "Darii"].contains(&form);
    right(sound == valid && reply.steps.len() == 2, || format!("{form} does not fit the argument"))
}

/// Checks the trace and the result of a small algorithm.
pub fn pseudocode(question: &str, reply: &Reply) -> Result<(), String> {
    let steps: Vec<&str> = reply.steps.iter().map(String::as_str).collect();
    let wrong = |i: usize| format!("step {}, {:?}, is wrong", i + 1, steps.get(i).copied().unwrap_or("missing"));
    let asked = |pattern: &str| fields(pattern, question);
    let one_list = |pattern: &str| asked(pattern).and_then(|f| list(f[0]));
    // Every step is compared with what it must be, and their number too.
    let all = |expected: Vec<String>| {
        let differ = (0..expected.len().max(steps.len()))
            .find(|&i| steps.get(i).copied() != expected.get(i).map(String::as_str));
        differ.map_or(Ok(()), |i| Err(wrong(i)))
    };
    if let Some(f) = asked("How to sort {} in {} order?") {
        let mut now = list(f[0]).ok_or("no list")?;
        right(!now.is_empty(), || "an empty list".into())?;
        let mut wanted = now.clone();
        wanted.sort_unstable();
        if f[1] == "descending" {
            wanted.reverse();
        }
        let before = |x: i64, y: i64| if f[1] == "descending" { x > y } else { x < y };
        for (i, step) in steps.iter().enumerate() {
            let said =
                fields("iterate and swap neighbours out of order: {} swaps, {}", step).ok_or_else(|| wrong(i))?;
            // One pass carries the extreme of what lies before to each place.
            let mut carried = now[0];
            let (mut after, mut swaps) = (vec![], 0);
            for &v in &now[1..] {
                if before(v, carried) {
                    after.push(v);
                    swaps += 1;
                } else {
                    after.push(carried);
                    carried = v;
                }
            }
            after.push(carried);
            right(whole(said[0]) == Some(swaps) && list(said[1]).as_ref() == Some(&after), || wrong(i))?;
            right((swaps == 0) == (i + 1 == steps.len()), || format!("it stops at the wrong pass: {}", wrong(i)))?;
            now = after;
        }
        right(now == wanted, || format!("{now:?} is not sorted"))?;
        return concludes(reply, &format!("{wanted:?}"));
    }
    if let Some(numbers) = one_list("How to find the maximum of {}?") {
        right(!numbers.is_empty(), || "an empty list".into())?;
        let best = |upto: usize| *numbers[..upto].iter().max().expect("not empty");
        let expected = (0..numbers.len()).map(|i| match (i, numbers[i]) {
            (0, v) => format!("start with best = {v}"),
            (i, v) if v > best(i) => format!("{v} > {}, best = {v}", best(i)),
            (i, v) => format!("{v} <= {0}, keep {0}", best(i)),
        });
        all(expected.collect())?;
        return concludes(reply, &best(numbers.len()).to_string());
    }
    if let Some(f) = asked("How to find {} in {} by linear search?") {
        let (target, numbers) = (whole(f[0]).ok_or("no number")?, list(f[1]).ok_or("no list")?);
        let at = numbers.iter().position(|&v| v == target);
        let passed = numbers.iter().take_while(|&&v| v != target).map(|v| format!("{v} != {target}, move on"));
        all(passed.chain(at.map(|_| format!("{target} == {target}, stop"))).collect())?;
        return concludes(reply, &at.map_or("not found".into(), |i| format!("index {i}")));
    }
    if let Some(numbers) = one_list("How to sum {}?") {
        let upto = |n: usize| numbers[..n].iter().sum::<i64>();
        all((0..numbers.len()).map(|i| format!("total = {} + {} = {}", upto(i), numbers[i], upto(i + 1))).collect())?;
        return concludes(reply, &upto(numbers.len()).to_string());
    }
    if let Some(numbers) = one_list("How to reverse {}?") {
        let backwards = |n: usize| numbers[..n].iter().rev().copied().collect::<Vec<i64>>();
        all((0..numbers.len()).map(|i| format!("push {} to the front: {:?}", numbers[i], backwards(i + 1))).collect())?;
        return concludes(reply, &format!("{:?}", backwards(numbers.len())));
    }
    if let Some(f) = asked("How to find gcd({}, {})?") {
        let (u, v) = (whole(f[0]).ok_or("no number")?, whole(f[1]).ok_or("no number")?);
        right(u > 0 && v > 0, || "a divisor of numbers that are not positive".into())?;
        let mut rests = vec![u, v];
        while rests[rests.len() - 1] != 0 {
            rests.push(rests[rests.len() - 2] % rests[rests.len() - 1]);
        }
        all(rests.windows(3).map(|w| format!("{} mod {} = {}", w[0], w[1], w[2])).collect())?;
        let divides = (1..=u.max(v)).rev().find(|d| u % d == 0 && v % d == 0).ok_or("no divisor")?;
        return concludes(reply, &divides.to_string());
    }
    if let Some(numbers) = one_list("How to count even numbers in {}?") {
        let even = |n: usize| numbers[..n].iter().filter(|&v| v & 1 == 0).count();
        let name = |v: i64| if v & 1 == 0 { "even" } else { "odd" };
        all((0..numbers.len())
            .map(|i| format!("{} is {}, count = {}", numbers[i], name(numbers[i]), even(i + 1)))
            .collect())?;
        return concludes(reply, &even(numbers.len()).to_string());
    }
    if let Some(f) = asked("How to find {} in {} by binary search?") {
        let (target, numbers) = (whole(f[0]).ok_or("no number")?, list(f[1]).ok_or("no list")?);
        right(numbers.is_sorted_by(|x, y| x < y), || "the list is not sorted".into())?;
        let (mut low, mut high, mut expected) = (0i64, numbers.len() as i64 - 1, vec![]);
        while low <= high {
            let middle = (low + high) / 2;
            let m = numbers[middle as usize];
            expected.push(match m.cmp(&target) {
                std::cmp::Ordering::Less => format!("middle is {m}, go right"),
                std::cmp::Ordering::Greater => format!("middle is {m}, go left"),
                std::cmp::Ordering::Equal => format!("middle is {m}, equal, stop"),
            });
            match m.cmp(&target) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle - 1,
                std::cmp::Ordering::Equal => break,
            }
        }
        all(expected)?;
        let at = numbers.iter().position(|&v| v == target);
        return concludes(reply, &at.map_or("not found".into(), |i| format!("index {i}")));
    }
    Err(format!("{question:?} is no task that is known"))
}

#[cfg(test)]
mod tests;
