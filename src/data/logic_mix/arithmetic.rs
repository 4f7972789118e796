//! Sums, differences and products, worked out digit by digit as on paper.

use super::Document;
use super::draws::Draws;

pub const PLACES: [&str; 6] = ["units", "tens", "hundreds", "thousands", "ten-thousands", "hundred-thousands"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Plus,
    Minus,
    Times,
}

impl Operation {
    pub const ALL: [Operation; 3] = [Operation::Plus, Operation::Minus, Operation::Times];

    pub fn symbol(self) -> char {
        match self {
            Operation::Plus => '+',
            Operation::Minus => '-',
            Operation::Times => '*',
        }
    }

    pub fn apply(self, a: u64, b: u64) -> i64 {
        match self {
            Operation::Plus => (a + b) as i64,
            Operation::Minus => a as i64 - b as i64,
            Operation::Times => (a * b) as i64,
        }
    }

    /// Most digits of the two operands.
    fn digits(self) -> (u64, u64) {
        if self == Operation::Times { (3, 2) } else { (4, 4) }
    }
}

/// A problem, whatever its wording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    pub operation: Operation,
    pub a: u64,
    pub b: u64,
}

impl Problem {
    /// What decides the split. Sums and products are one problem in both orders.
    pub fn key(self) -> String {
        let Problem { operation, a, b } = self;
        match operation {
            Operation::Minus => format!("-|{a}|{b}"),
            _ => format!("{}|{}|{}", operation.symbol(), a.min(b), a.max(b)),
        }
    }

    pub fn answer(self) -> i64 {
        self.operation.apply(self.a, self.b)
    }

    /// The question in one of four wordings.
    pub fn question(self, wording: u64) -> String {
        let Problem { operation, a, b } = self;
        let symbol = operation.symbol();
        match (wording, operation) {
            (0, _) => format!("Calculate {a} {symbol} {b}."),
            (1, _) => format!("What is {a} {symbol} {b}?"),
            (2, _) => format!("Compute {a} {symbol} {b}."),
            (_, Operation::Plus) => format!("Add {a} and {b}."),
            (_, Operation::Minus) => format!("Subtract {b} from {a}."),
            (_, Operation::Times) => format!("Multiply {a} by {b}."),
        }
    }

    /// The steps, without their numbers.
    pub fn steps(self) -> Vec<String> {
        match self.operation {
            Operation::Plus => sum(self.a, self.b),
            Operation::Minus => difference(self.a, self.b),
            Operation::Times => product(self.a, self.b),
        }
    }

    pub fn text(self, wording: u64) -> String {
        super::dialogue(&self.question(wording), &self.steps(), &format!("Therefore {}.", self.answer()))
    }
}

/// Decimal digits, lowest first; zero has one.
fn digits(mut n: u64) -> Vec<u64> {
    let mut digits = vec![n % 10];
    while n >= 10 {
        n /= 10;
        digits.push(n % 10);
    }
    digits
}

fn digit(of: &[u64], place: usize) -> u64 {
    of.get(place).copied().unwrap_or(0)
}

fn sum(a: u64, b: u64) -> Vec<String> {
    let (a, b) = (digits(a), digits(b));
    let mut carry = 0;
    let mut steps: Vec<String> = (0..a.len().max(b.len()))
        .map(|place| {
            let (x, y, c) = (digit(&a, place), digit(&b, place), carry);
            let s = x + y + c;
            carry = s / 10;
            format!("Sum {}: {x} + {y} + {c} = {s}, write {}, carry {carry}.", PLACES[place], s % 10)
        })
        .collect();
    if carry > 0 {
        steps.push(format!("Write the last carry {carry}."));
    }
    steps
}

fn difference(a: u64, b: u64) -> Vec<String> {
    let mut steps = vec![];
    if a < b {
        steps.push(format!("{a} is less than {b}, so compute {b} - {a} and negate."));
    }
    let (a, b) = (digits(a.max(b)), digits(a.min(b)));
    let mut borrow = 0;
    for (place, &x) in a.iter().enumerate() {
        let (y, w) = (digit(&b, place), borrow);
        borrow = u64::from(x < y + w);
        let write = x + 10 * borrow - y - w;
        steps.push(format!("Subtract {}: {x} - {y} - {w}, write {write}, borrow {borrow}.", PLACES[place]));
    }
    steps
}

fn product(a: u64, b: u64) -> Vec<String> {
    let (mut total, mut shifted) = (0, 1);
    digits(b)
        .into_iter()
        .enumerate()
        .map(|(shift, d)| {
            let (before, p) = (total, a * d);
            total += p * shifted;
            shifted *= 10;
            format!("Multiply {a} by {d}: {p}, shift {shift}, add to {before}: {total}.")
        })
        .collect()
}

/// A number of exactly `n` digits; with one digit, zero too.
pub fn number(draws: &mut Draws, n: u64) -> u64 {
    if n == 1 {
        return draws.below(10);
    }
    let least = 10u64.pow(n as u32 - 1);
    least + draws.below(9 * least)
}

fn numbers_of(n: u64) -> f64 {
    if n == 1 { 10.0 } else { 9.0 * 10f64.powi(n as i32 - 1) }
}

/// Draws a problem and its wording, and how surprising the text is in bits.
pub fn draw(draws: &mut Draws) -> (Problem, u64, f64) {
    let operation = Operation::ALL[draws.below(3) as usize];
    let most = operation.digits();
    let lengths = (1 + draws.below(most.0), 1 + draws.below(most.1));
    let (mut a, mut b) = (number(draws, lengths.0), number(draws, lengths.1));
    let mut bits = (3.0 * most.0 as f64 * most.1 as f64 * numbers_of(lengths.0) * numbers_of(lengths.1)).log2() + 2.0;
    if operation == Operation::Minus && a != b {
        // A larger second number is drawn half of the time, and shown so one time in ten.
        let smaller_first = a < b;
        if smaller_first && draws.below(10) != 0 {
            (a, b) = (b, a);
        }
        bits -= if a < b { 0.1f64.log2() } else { 1.9f64.log2() };
    }
    (Problem { operation, a, b }, draws.below(4), bits)
}

pub fn document(draws: &mut Draws) -> Document {
    let (problem, wording, bits) = draw(draws);
    Document { key: problem.key(), text: problem.text(wording), bits }
}

#[cfg(test)]
mod tests {
    use super::super::{SEED, class_of};
    use super::*;

    fn at(index: u64) -> String {
        document(&mut Draws::of(SEED, 1, index)).text
    }

    #[test]
    fn the_first_documents_are_the_published_ones() {
        let expected =
            "User: Calculate 6 * 5.\nCoeus: Step 1: Multiply 6 by 5: 30, shift 0, add to 0: 30. Therefore 30.\n\n";
        assert_eq!(at(0), expected);
        let third = at(2);
        assert!(third.contains("What is 21 + 9755?") && third.ends_with("Therefore 9776.\n\n"), "{third}");
    }

    #[test]
    fn keys_have_the_published_classes() {
        for (a, b, operation, class, key) in [
            (456, 123, Operation::Plus, 33, "+|123|456"),
            (6, 5, Operation::Times, 31, "*|5|6"),
            (12, 7, Operation::Minus, 18, "-|12|7"),
        ] {
            let problem = Problem { operation, a, b };
            assert_eq!((problem.key().as_str(), class_of(&problem.key())), (key, class));
        }
    }

    #[test]
    fn carries_borrows_and_negative_answers_are_written_out() {
        let text = |operation, a, b| Problem { operation, a, b }.text(3);
        assert_eq!(
            text(Operation::Plus, 95, 7),
            "User: Add 95 and 7.\nCoeus: Step 1: Sum units: 5 + 7 + 0 = 12, write 2, carry 1. \
             Step 2: Sum tens: 9 + 0 + 1 = 10, write 0, carry 1. Step 3: Write the last carry 1. Therefore 102.\n\n"
        );
        assert_eq!(
            text(Operation::Minus, 8, 20),
            "User: Subtract 20 from 8.\nCoeus: Step 1: 8 is less than 20, so compute 20 - 8 and negate. \
             Step 2: Subtract units: 0 - 8 - 0, write 2, borrow 1. \
             Step 3: Subtract tens: 2 - 0 - 1, write 1, borrow 0. Therefore -12.\n\n"
        );
        assert_eq!(
            text(Operation::Times, 123, 40),
            "User: Multiply 123 by 40.\nCoeus: Step 1: Multiply 123 by 0: 0, shift 0, add to 0: 0. \
             Step 2: Multiply 123 by 4: 492, shift 1, add to 0: 4920. Therefore 4920.\n\n"
        );
    }

    #[test]
    fn bits_are_the_surprise_of_the_text() {
        // Of one-digit differences: 2^-bits summed over all that can be printed is their share, 1/3 x 1/16.
        let mut seen = std::collections::BTreeMap::new();
        for index in 0..400_000 {
            let (problem, wording, bits) = draw(&mut Draws::of(SEED, 1, index));
            if problem.operation == Operation::Minus && problem.a < 10 && problem.b < 10 {
                seen.insert((problem.a, problem.b, wording), bits);
            }
        }
        let share: f64 = seen.values().map(|bits| (-bits).exp2()).sum();
        // Rare ones (a < b: 1 in 10) may not have been drawn.
        assert!((share * 48.0 - 1.0).abs() < 0.02, "{}", share * 48.0);
    }
}
