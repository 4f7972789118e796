//! Unseen problems of the kinds that the logic mix trains, and of forms and lengths that it does not. Problems come from the test
//! class of keys, drawn from stream 9 of the seed, so that they are the same for every model and never in its training.

pub mod judge;
pub mod solvers;

use super::Proportion;
use crate::Result;
use crate::data::logic_mix::arithmetic::{self, Operation};
use crate::data::logic_mix::draws::Draws;
use crate::data::logic_mix::syllogism::{self, Form, HELD_OUT_NOUNS, NOUNS};
use crate::data::logic_mix::{Kind, Split, dialogue, pseudocode};
use judge::Marks;
use serde::Serialize;
use solvers::Solver;
use std::collections::BTreeSet;

/// Number of the stream of random numbers that sets the problems.
pub const STREAM: u64 = 9;
/// Problems of a cell, if nothing else is asked for.
pub const PROBLEMS: usize = 200;
/// Most tokens, and most bytes, of a reply.
pub const LIMIT: usize = 512;
/// Draws without a new problem of the wanted kind after which there are taken to be no more.
const PATIENCE: u64 = 100_000;

/// A kind of problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    A1,
    A2,
    A3,
    A4,
    A5,
    M3x1,
    M3x2,
    M4x2,
    X,
    S,
    SHeldOut,
    P,
}

use Cell::*;

impl Cell {
    pub const ALL: [Cell; 12] = [A1, A2, A3, A4, A5, M3x1, M3x2, M4x2, X, S, SHeldOut, P];

    pub fn name(self) -> &'static str {
        match self {
            A1 => "A1",
            A2 => "A2",
            A3 => "A3",
            A4 => "A4",
            A5 => "A5",
            M3x1 => "M 3x1",
            M3x2 => "M 3x2",
            M4x2 => "M 4x2",
            X => "X",
            S => "S",
            SHeldOut => "S held out",
            P => "P",
        }
    }

    /// What is asked.
    pub fn about(self) -> &'static str {
        match self {
            A1 => "sums and differences, 1 digit",
            A2 => "sums and differences, 2 digits",
            A3 => "sums and differences, 3 digits",
            A4 => "sums and differences, 4 digits",
            A5 => "sums and differences, 5 digits: longer than any trained",
            M3x1 => "products, 3 by 1 digits",
            M3x2 => "products, 3 by 2 digits",
            M4x2 => "products, 4 by 2 digits: longer than any trained",
            X => "a + b * c and a - b + c: a form that is never trained",
            S => "arguments, half of them valid",
            SHeldOut => "arguments about nouns that are never trained",
            P => "small algorithms",
        }
    }

    pub fn kind(self) -> Kind {
        match self {
            S | SHeldOut => Kind::Syllogism,
            P => Kind::Pseudocode,
            _ => Kind::Arithmetic,
        }
    }
}

/// What is right.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    Integer(i64),
    Verdict { valid: bool, form: &'static str },
    Result(String),
}

/// A problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub cell: Cell,
    /// Decides the split where the generator makes such problems.
    pub key: String,
    pub question: String,
    pub expected: Expected,
    /// A right reply as the generator would write it.
    pub worked: String,
}

impl Item {
    /// What a model continues: up to where the training texts have a space and the first step.
    pub fn prompt(&self) -> String {
        format!("User: {}\nCoeus:", self.question)
    }

    fn new(cell: Cell, key: String, text: &str, expected: Expected) -> Self {
        let (question, worked) = text.split_once("\nCoeus:").expect("a dialogue");
        let question = question.strip_prefix("User: ").expect("a dialogue").to_owned();
        Item { cell, key, question, expected, worked: worked.to_owned() }
    }

    fn arithmetic(cell: Cell, problem: arithmetic::Problem, wording: u64) -> Self {
        Item::new(cell, problem.key(), &problem.text(wording), Expected::Integer(problem.answer()))
    }
}

/// The problems of a cell: `n` different ones, or as many as exist. A1 always has every one that exists (validation and test
/// keys: the test class alone has a handful).
pub fn items(cell: Cell, n: usize, seed: u64) -> Vec<Item> {
    match cell {
        A1 => one_digit(seed),
        S | SHeldOut => {
            let half = |valid: bool, n: usize| {
                let index = (cell as u64) << 1 | u64::from(valid);
                distinct(index, n, seed, |draws| argument(draws, cell, valid))
            };
            let (valid, invalid) = (half(true, n.div_ceil(2)), half(false, n / 2));
            // Alternating, so that a shorter run has both.
            let mut invalid = invalid.into_iter();
            valid.into_iter().flat_map(|v| [Some(v), invalid.next()]).flatten().collect()
        }
        _ => distinct((cell as u64) << 1, n, seed, |draws| match cell {
            P => task(draws),
            X => Some(mixed(draws)),
            M3x1 => Some(product(draws, cell, 3, 1)),
            M3x2 => Some(product(draws, cell, 3, 2)),
            M4x2 => Some(product(draws, cell, 4, 2)),
            _ => Some(sum_or_difference(draws, cell, 1 + cell as u64)),
        }),
    }
}

/// Draws until there are `n` problems with different keys of the test class.
fn distinct(index: u64, n: usize, seed: u64, draw: impl Fn(&mut Draws) -> Option<Item>) -> Vec<Item> {
    let (mut found, mut keys) = (vec![], BTreeSet::new());
    let (mut attempt, mut last) = (0u64, 0u64);
    while found.len() < n && attempt - last < PATIENCE {
        let item = draw(&mut Draws::of(seed, STREAM, index << 40 | attempt));
        attempt += 1;
        // Texts about held-out nouns are in no training set, whatever the class of their places in the list.
        let wanted = |item: &Item| item.cell == SHeldOut || Split::of(&item.key) == Split::Test;
        if let Some(item) = item.filter(wanted)
            && keys.insert(item.key.clone())
        {
            found.push(item);
            last = attempt;
        }
    }
    found
}

fn one_digit(seed: u64) -> Vec<Item> {
    let pairs = (0..10u64).flat_map(|a| (0..10u64).map(move |b| (a, b)));
    let problems = [Operation::Plus, Operation::Minus].into_iter().flat_map(|operation| {
        let once = move |&(a, b): &(u64, u64)| operation == Operation::Minus || a <= b;
        pairs.clone().filter(once).map(move |(a, b)| arithmetic::Problem { operation, a, b })
    });
    let unseen = problems.filter(|p| Split::of(&p.key()) != Split::Train);
    let wording = |i: usize| Draws::of(seed, STREAM, i as u64).below(4);
    unseen.enumerate().map(|(i, problem)| Item::arithmetic(A1, problem, wording(i))).collect()
}

/// As the generator draws them, with exactly this many digits.
fn sum_or_difference(draws: &mut Draws, cell: Cell, digits: u64) -> Item {
    let operation = [Operation::Plus, Operation::Minus][draws.below(2) as usize];
    let (mut a, mut b) = (arithmetic::number(draws, digits), arithmetic::number(draws, digits));
    if operation == Operation::Minus && a < b && draws.below(10) != 0 {
        (a, b) = (b, a);
    }
    Item::arithmetic(cell, arithmetic::Problem { operation, a, b }, draws.below(4))
}

fn product(draws: &mut Draws, cell: Cell, digits_a: u64, digits_b: u64) -> Item {
    let (a, b) = (arithmetic::number(draws, digits_a), arithmetic::number(draws, digits_b));
    Item::arithmetic(cell, arithmetic::Problem { operation: Operation::Times, a, b }, draws.below(4))
}

/// Two operations of 1 to 3 digits in one question. The steps of the right reply are those of the two operations in turn.
fn mixed(draws: &mut Draws) -> Item {
    let product = draws.below(2) == 0;
    let [mut a, mut b, c] = [(); 3].map(|()| {
        let digits = 1 + draws.below(3);
        arithmetic::number(draws, digits)
    });
    let (shown, first, second) = if product {
        let first = arithmetic::Problem { operation: Operation::Times, a: b, b: c };
        (format!("{a} + {b} * {c}"), first, arithmetic::Problem { operation: Operation::Plus, a, b: b * c })
    } else {
        (a, b) = (a.max(b), a.min(b));
        let first = arithmetic::Problem { operation: Operation::Minus, a, b };
        (format!("{a} - {b} + {c}"), first, arithmetic::Problem { operation: Operation::Plus, a: a - b, b: c })
    };
    let question = match draws.below(3) {
        0 => format!("Calculate {shown}."),
        1 => format!("What is {shown}?"),
        _ => format!("Compute {shown}."),
    };
    let steps = [first.steps(), second.steps()].concat();
    let answer = second.answer();
    let text = dialogue(&question, &steps, &format!("Therefore {answer}."));
    // The key begins like those of sums or of differences, the nearest trained problems.
    let key = format!("{}|{shown}", if product { '+' } else { '-' });
    Item::new(X, key, &text, Expected::Integer(answer))
}

/// An argument, if the form drawn is of the wanted validity. Only forms about nouns can be about held-out ones.
fn argument(draws: &mut Draws, cell: Cell, valid: bool) -> Option<Item> {
    let held_out = cell == SHeldOut;
    let forms: Vec<Form> =
        Form::ALL.into_iter().filter(|f| f.valid() == valid && !(held_out && f.of_clauses())).collect();
    let form = forms[draws.below(forms.len() as u64) as usize];
    let nouns: &[&str] = if held_out { &HELD_OUT_NOUNS } else { &NOUNS };
    let drawn = syllogism::draw_of(draws, form, nouns.len());
    let text = drawn.argument(nouns).text(drawn.wording);
    Some(Item::new(cell, drawn.key(), &text, Expected::Verdict { valid, form: form.name() }))
}

fn task(draws: &mut Draws) -> Option<Item> {
    let (task, _) = pseudocode::draw(draws);
    Some(Item::new(P, task.key(), &task.text(), Expected::Result(task.run().1)))
}

/// What is asked of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Options {
    pub seed: u64,
    /// Problems of a cell.
    pub n: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { seed: crate::data::logic_mix::SEED, n: PROBLEMS }
    }
}

/// One measure of one cell, for each solver.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub cell: &'static str,
    pub measure: &'static str,
    pub about: &'static str,
    /// What guessing gets.
    pub chance: f64,
    /// In the order of the solvers.
    pub scores: Vec<Proportion>,
}

/// Whether a model may be said to reason: it beats every baseline, with intervals that do not meet, where nothing could be
/// remembered: on lengths (A5) or forms (X) that are never trained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Claim {
    pub solver: String,
    /// The cells that carry the claim; none: no claim.
    pub cells: Vec<&'static str>,
    pub claimed: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub options: Options,
    pub solvers: Vec<String>,
    pub rows: Vec<Row>,
    /// One for each solver that is no baseline; none without baselines to compare with.
    pub claims: Vec<Claim>,
}

/// Sets every problem to every solver. `progress` is told how many replies are done, and of how many.
pub fn run(
    options: &Options,
    solvers: &mut [Box<dyn Solver + '_>],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report> {
    let cells: Vec<(Cell, Vec<Item>)> =
        Cell::ALL.into_iter().map(|cell| (cell, items(cell, options.n, options.seed))).collect();
    let total = solvers.len() * cells.iter().map(|(_, items)| items.len()).sum::<usize>();
    let mut done = 0;
    // By solver and cell.
    let mut marks: Vec<Vec<Vec<Marks>>> = vec![];
    for solver in solvers.iter_mut() {
        let mut of_solver = vec![];
        for (_, items) in &cells {
            let mut of_cell = vec![];
            for item in items {
                of_cell.push(judge::judge(item, &solver.reply(item)?));
                done += 1;
                progress(done, total);
            }
            of_solver.push(of_cell);
        }
        marks.push(of_solver);
    }
    let rows = rows(&marks);
    let names: Vec<String> = solvers.iter().map(|s| s.name()).collect();
    let baselines: Vec<bool> = solvers.iter().map(|s| s.is_baseline()).collect();
    let claims = claims(&rows, &names, &baselines);
    Ok(Report { options: options.clone(), solvers: names, rows, claims })
}

fn rows(marks: &[Vec<Vec<Marks>>]) -> Vec<Row> {
    // The share of a mark over some cells, for each solver.
    let scores = |cells: &[Cell], mark: fn(&Marks) -> bool| -> Vec<Proportion> {
        let of = |of_solver: &Vec<Vec<Marks>>| {
            Proportion::of(cells.iter().flat_map(|&cell| of_solver[cell as usize].iter().map(mark)))
        };
        marks.iter().map(of).collect()
    };
    let mut rows = vec![];
    let mut row = |cell, measure, about, chance, scores| rows.push(Row { cell, measure, about, chance, scores });
    let arithmetic: Vec<Cell> = Cell::ALL.into_iter().filter(|c| c.kind() == Kind::Arithmetic).collect();
    for cell in Cell::ALL {
        let answers = scores(&[cell], |m| m.answer);
        match cell.kind() {
            Kind::Syllogism => {
                row(cell.name(), "verdict", cell.about(), 0.5, answers);
                let forms = if cell == S { 12.0 } else { 6.0 };
                row(cell.name(), "form", "the name of the form", 1.0 / forms, scores(&[cell], |m| m.form));
            }
            Kind::Pseudocode => {
                row(cell.name(), "answer", cell.about(), 0.0, answers);
                row(cell.name(), "every step", "answer and steps", 0.0, scores(&[cell], |m| m.faithful));
            }
            _ => row(cell.name(), "answer", cell.about(), 0.0, answers),
        }
        if cell == X {
            let faithful = scores(&arithmetic, |m| m.faithful);
            row("F", "faithful", "all of the above: right steps to the right answer", 0.0, faithful);
        }
    }
    row("G", "grammar", "all: the reply has the form of the training texts", 0.0, scores(&Cell::ALL, |m| m.grammar));
    rows
}

fn claims(rows: &[Row], names: &[String], baselines: &[bool]) -> Vec<Claim> {
    if !baselines.contains(&true) {
        return vec![];
    }
    let beats = |row: &Row, solver: usize| {
        (0..names.len()).filter(|&other| baselines[other]).all(|other| row.scores[solver].above(&row.scores[other]))
    };
    (0..names.len())
        .filter(|&solver| !baselines[solver])
        .map(|solver| {
            let unseen = rows.iter().filter(|row| [A5.name(), X.name()].contains(&row.cell));
            let cells: Vec<&str> = unseen.filter(|row| beats(row, solver)).map(|row| row.cell).collect();
            Claim { solver: names[solver].clone(), claimed: !cells.is_empty(), cells }
        })
        .collect()
}
