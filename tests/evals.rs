//! Batteries of problems, without a model where one is not needed: solvers that know the answers and solvers that guess bracket what
//! a model can get.

use lynx_gpu::Result;
use lynx_gpu::config::{Config, OptimizerConfig};
use lynx_gpu::data::logic_mix::{self, Kind, SEED, Split, arithmetic, check, draws::Draws, pseudocode, syllogism};
use lynx_gpu::device::Device;
use lynx_gpu::evals::filler::Filler;
use lynx_gpu::evals::iq::solvers::{Majority, NGram, NearestCopy, Solver, Training};
use lynx_gpu::evals::iq::{self, Cell, Expected, Item, Options, Report};
use lynx_gpu::evals::{Proportion, multihop, recall};
use lynx_gpu::infer::NextToken;
use lynx_gpu::models::{Session, setup};
use lynx_gpu::tokenizer::{ByteTokenizer, CharTokenizer, SpecialTokens, Tokenizer};
use std::collections::{BTreeMap, BTreeSet};

#[path = "evals/command.rs"]
mod command;

#[test]
fn wilson_intervals_are_the_published_ones() {
    // Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for (hits, n, low, high) in
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
    {
        let p = Proportion::new(hits, n);
        assert!((p.low - low).abs() < 5e-5 && (p.high - high).abs() < 5e-5, "{p:?}");
    }
    for n in [1, 7, 200] {
        let (none, all) = (Proportion::new(0, n), Proportion::new(n, n));
        assert!(none.low == 0.0 && all.high == 1.0 && (none.high - (1.0 - all.low)).abs() < 1e-12);
        assert!(all.above(&none) == (all.low > none.high) && !none.above(&all));
    }
    // Of shares p, the interval of a draw holds p about 95 times in 100.
    let mut draws = Draws::of(1, 77, 0);
    let held = (0..2000).filter(|_| {
        let share = draws.below(1000);
        let hits = (0..200).filter(|_| draws.below(1000) < share).count() as u64;
        let p = Proportion::new(hits, 200);
        p.low <= share as f64 / 1000.0 && share as f64 / 1000.0 <= p.high
    });
    // Binomial(2000, 0.95): standard deviation 9.7; five of them either way.
    assert!((1851..=1949).contains(&held.count()));
}

/// Knows every answer.
struct Oracle;

impl Solver for Oracle {
    fn name(&self) -> String {
        "oracle".into()
    }

    fn reply(&mut self, item: &Item) -> Result<String> {
        Ok(item.worked.clone())
    }
}

/// Writes replies of the right form with drawn content.
struct Guess(Draws);

impl Solver for Guess {
    fn name(&self) -> String {
        "guess".into()
    }

    fn reply(&mut self, item: &Item) -> Result<String> {
        let text = match item.cell.kind() {
            Kind::Syllogism => syllogism::document(&mut self.0).text,
            Kind::Pseudocode => pseudocode::document(&mut self.0).text,
            _ => arithmetic::document(&mut self.0).text,
        };
        Ok(text.split_once("\nCoeus:").unwrap().1.to_owned())
    }
}

fn score<'a>(report: &'a Report, cell: &str, measure: &str) -> &'a [Proportion] {
    let row = report.rows.iter().find(|row| row.cell == cell && row.measure == measure);
    &row.unwrap_or_else(|| panic!("no row {cell} {measure}")).scores
}

#[test]
fn an_oracle_gets_everything_guesses_get_chance_and_baselines_lie_between() {
    let training = Training::generated(SEED, 300_000);
    let mut solvers: Vec<Box<dyn Solver>> = vec![
        Box::new(Oracle),
        Box::new(Guess(Draws::of(SEED, 77, 1))),
        Box::new(NGram::fit(&training).unwrap()),
        Box::new(NearestCopy::fit(&training)),
        Box::new(Majority::fit(&training)),
    ];
    let options = Options { n: 100, ..Options::default() };
    let mut told = (0, 0);
    let report = iq::run(&options, &mut solvers, &mut |done, total| told = (done, total)).unwrap();
    assert!(told.0 == told.1 && told.1 == 5 * (11 * 100 + score(&report, "A1", "answer")[0].n as usize));
    for row in &report.rows {
        assert_eq!((row.scores[0].rate, row.scores[0].high), (1.0, 1.0), "{row:?}");
        // Guesses: chance lies in the interval, which may miss one time in twenty; twice its width does not.
        let guess = row.scores[1];
        let slack = guess.high - guess.low;
        match row.measure {
            "grammar" => assert_eq!(guess.rate, 1.0),
            "verdict" | "form" => {
                let chance = if row.measure == "form" { 1.0 / 12.0 } else { 0.5 };
                assert!((guess.rate - chance).abs() < slack, "{row:?}");
            }
            // One-digit answers are few, and so are verdicts of searches ("not found") and short results.
            _ if row.cell == "A1" || row.cell == "P" => assert!(guess.rate < 0.35, "{row:?}"),
            _ => assert!(guess.rate < 0.05, "{row:?}"),
        }
        // A constant verdict is right half of the time; an argument of four words is not remembered.
        if row.measure == "verdict" {
            assert!(row.scores[2].rate <= 0.5 && row.scores[4].rate == 0.5, "{row:?}");
        }
        if ["A3", "A4", "A5", "M 3x2", "M 4x2", "X", "F"].contains(&row.cell) {
            assert!(row.scores[2..].iter().all(|s| s.rate < 0.1), "{row:?}");
        }
    }
    // Only who beats every baseline on what is never trained is said to reason.
    let claims: Vec<(&str, bool)> = report.claims.iter().map(|c| (c.solver.as_str(), c.claimed)).collect();
    assert_eq!(claims, [("oracle", true), ("guess", false)]);
    assert_eq!(report.claims[0].cells, ["A5", "X"]);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["rows"][0]["scores"].as_array().unwrap().len(), 5);
}

#[test]
fn problems_are_unseen_different_and_the_same_each_time() {
    for cell in Cell::ALL {
        let items = iq::items(cell, 200, SEED);
        let keys: BTreeSet<&str> = items.iter().map(|i| i.key.as_str()).collect();
        assert_eq!(items, iq::items(cell, 200, SEED));
        match cell {
            // All that exist: 55 sums and 100 differences, a tenth of them unseen.
            Cell::A1 => assert!((8..=25).contains(&items.len())),
            _ => assert_eq!(items.len(), 200, "{cell:?}"),
        }
        // Two halves of arguments have keys of their own; held-out nouns share the numbers of others.
        assert_eq!(keys.len(), items.len(), "{cell:?}");
        for item in &items {
            match cell {
                Cell::A1 => assert_ne!(Split::of(&item.key), Split::Train, "{item:?}"),
                Cell::SHeldOut => assert!(syllogism::HELD_OUT_NOUNS.iter().any(|noun| item.question.contains(noun))),
                _ => assert_eq!(Split::of(&item.key), Split::Test, "{item:?}"),
            }
        }
        let valid = items.iter().filter(|i| matches!(i.expected, Expected::Verdict { valid: true, .. })).count();
        assert_eq!(valid, if cell.kind() == Kind::Syllogism { 100 } else { 0 });
        // A shorter run asks the first ones of a longer run, and another seed asks others.
        let shorter = iq::items(cell, 50, SEED);
        assert!(shorter[..] == items[..shorter.len()] && shorter.len() == items.len().min(50), "{cell:?}");
        if cell != Cell::A1 {
            assert!(iq::items(cell, 50, 7)[..] != items[..50], "{cell:?}");
        }
    }
    // No text that a mix of the usual size trains on asks one of these questions.
    let asked: BTreeSet<String> =
        Cell::ALL.into_iter().flat_map(|cell| iq::items(cell, 200, SEED)).map(|item| item.question).collect();
    for (_, record) in Training::generated(SEED, 4_000_000).records {
        let (question, _) = check::document(&record.text).unwrap();
        assert!(!asked.contains(question), "{question}");
    }
}

#[test]
fn operands_have_the_digits_that_the_cell_says() {
    let digits = |n: i64| n.to_string().len();
    for (cell, of_a, of_b) in [
        (Cell::A2, 2, 2),
        (Cell::A4, 4, 4),
        (Cell::A5, 5, 5),
        (Cell::M3x1, 3, 1),
        (Cell::M3x2, 3, 2),
        (Cell::M4x2, 4, 2),
    ] {
        for item in iq::items(cell, 100, SEED) {
            let (_, a, b) = check::operands(&item.question).unwrap();
            assert_eq!((digits(a), digits(b)), (of_a, of_b), "{}", item.question);
        }
    }
    // Two operations, and the second one's rank is kept: the answer is computed here once more.
    for item in iq::items(Cell::X, 100, SEED) {
        let numbers: Vec<i64> =
            item.question.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
        let [a, b, c] = numbers[..] else { panic!("{}", item.question) };
        let answer = if item.question.contains('*') { a + b * c } else { a - b + c };
        assert_eq!(item.expected, Expected::Integer(answer), "{}", item.question);
        assert!(check::operands(&item.question).is_none(), "{}", item.question);
    }
}

/// A reader of bytes that looks facts up in the newest `view` bytes of its text, and guesses digits where it finds none.
struct Copier {
    tokenizer: Tokenizer,
    view: usize,
    seen: Vec<u8>,
    /// The longest text it was given.
    longest: usize,
}

impl Copier {
    fn new(view: usize) -> Self {
        Copier { tokenizer: Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::none())), view, seen: vec![], longest: 0 }
    }

    /// The byte that must come next, if it can be known.
    fn next(&self, text: &str) -> Option<u8> {
        if let Some((before, asked)) = text.rsplit_once("Start at ") {
            let (start, rest) = asked.split_once(", ")?;
            let (steps, written) = rest.split_once(" steps: ")?;
            let mut links = BTreeMap::new();
            for (at, words) in before.match_indices(" gives the key to ") {
                links.insert(before.get(at.checked_sub(6)?..at)?, before.get(at + words.len()..at + words.len() + 6)?);
            }
            let holder = (0..steps.parse::<usize>().ok()?).try_fold(start, |name, _| links.get(name).copied())?;
            return holder.as_bytes().get(written.len()).copied();
        }
        let asked = &text[text.rfind("The code of ")?..];
        let told = text[..text.len() - asked.len()].find(asked)?;
        text.as_bytes().get(told + asked.len()).copied()
    }
}

impl NextToken for Copier {
    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
    fn context(&self) -> usize {
        usize::MAX
    }
    fn next_logits(&mut self, _: &[u32]) -> Result<Vec<f32>> {
        unreachable!("batteries read on")
    }
    fn restart(&mut self) -> Result<()> {
        self.seen.clear();
        Ok(())
    }
    fn advance(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.seen.extend(tokens.iter().map(|&t| t as u8));
        self.longest = self.longest.max(self.seen.len());
        let visible = &self.seen[self.seen.len().saturating_sub(self.view)..];
        let next = self.next(std::str::from_utf8(visible).unwrap());
        // Five rows beyond the tokenizer's ids, which nobody may choose.
        let mut logits = vec![-20.0; 256 + 5];
        logits[256..].fill(90.0);
        match next {
            Some(byte) => logits[byte as usize] = 20.0,
            None => logits[b'0' as usize..=b'9' as usize].fill(0.0),
        }
        Ok(logits)
    }
    fn position(&self) -> u64 {
        self.seen.len() as u64
    }
}

fn recalled(model: &mut Copier, distances: &[usize], facts: &[usize], n: usize) -> recall::Report {
    let options = recall::Options { distances: distances.to_vec(), facts: facts.to_vec(), n, ..Default::default() };
    recall::run(model, "model", &options, &Filler::generated(SEED), &mut |_, _| {}).unwrap()
}

#[test]
fn a_copier_recalls_everything_at_every_distance_among_other_facts() {
    let mut model = Copier::new(usize::MAX);
    let report = recalled(&mut model, &recall::DISTANCES, &[1, 2, 4, 9], 8);
    for cell in &report.cells {
        assert_eq!((cell.score.exact.rate, cell.score.digits.rate), (1.0, 1.0), "{cell:?}");
        assert!(cell.score.nats_per_digit < 1e-6 && cell.reach == recall::reach(cell.distance), "{cell:?}");
        assert_eq!((cell.score.exact.n, cell.score.digits.n, cell.by_alignment.len()), (8, 32, 8));
    }
    assert_eq!(report.by_alignment.iter().map(|s| s.exact.n).sum::<u64>(), 8 * 9 * 4);
    // 3,000 bytes need a text longer than the usual 1,024.
    assert!((3000..3600).contains(&model.longest));
}

/// What attention of 6 layers and a window of 128 can see, and nothing more: a distance of 700 is inside, 900 is the clean control.
#[test]
fn a_reader_of_the_newest_762_tokens_is_at_chance_at_900() {
    let mut model = Copier::new(762);
    let report = recalled(&mut model, &[16, 700, 900], &[1], 400);
    let [near, inside, beyond] = &report.cells[..] else { panic!() };
    assert_eq!((near.score.exact.rate, inside.score.exact.rate), (1.0, 1.0));
    assert!(inside.reach <= 761 && beyond.reach > 761);
    assert!(beyond.score.exact.rate <= 0.01, "{beyond:?}");
    // Guessing one digit always: binomial(1600, 0.1), five standard deviations of 0.0075.
    assert!((beyond.score.digits.rate - 0.1).abs() < 0.0375, "{beyond:?}");
    assert!((beyond.score.nats_per_digit - std::f64::consts::LN_10).abs() < 1e-5, "{beyond:?}");
}

/// The same of models: whatever its weights are, attention alone answers a query at 900 without regard to the code that was told,
/// and a recurrence that forgets slowly does not.
#[test]
fn attention_alone_cannot_tell_one_code_from_another_beyond_its_reach() {
    let bytes = Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::none()));
    let session = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        let mut config = Config::load("coeus-v2.5-nano", &sets).unwrap().0;
        config.set_vocab_size(bytes.vocab_size()).unwrap();
        let model = setup::model(&config.model).unwrap();
        Session::for_inference(model, bytes.clone(), OptimizerConfig::default(), Device::Cpu, 5).unwrap()
    };
    let filler = Filler::generated(SEED);
    let both = |session: &mut Session, distance: usize| {
        let sample = recall::sample(&filler, &mut Draws::of(SEED, 8, 1), distance, 1, 0);
        let mut other = sample.prompt.clone();
        let code = if sample.answer == "2718" { "3141" } else { "2718" };
        other.replace_range(sample.told..sample.told + 4, code);
        [sample.prompt, other].map(|prompt| {
            session.restart().unwrap();
            session.advance(&bytes.encode(&prompt).unwrap()).unwrap()
        })
    };
    let mut local = session(&["model.fusion=local_only"]);
    let [a, b] = both(&mut local, 900);
    assert!(a == b && a.iter().all(|logit| logit.is_finite()));
    let [a, b] = both(&mut local, 120);
    assert_ne!(a, b);
    let [a, b] = both(&mut session(&["model.forget_bias_low=8", "model.forget_bias_high=8"]), 900);
    assert_ne!(a, b);
}

#[test]
fn facts_stand_where_they_are_said_to_and_their_names_are_in_no_training_text() {
    let filler = Filler::generated(SEED);
    let trained: String =
        Training::generated(SEED, 400_000).records.into_iter().map(|(_, r)| r.text).collect::<String>()
            + &logic_mix::documents(SEED, Kind::Recall, 400_000)
                .into_iter()
                .filter(|d| Split::of(&d.key) == Split::Train)
                .map(|d| d.text)
                .collect::<String>();
    for number in 0..400 {
        let (facts, distance, alignment) = (1 + number % 6, 37 * number % 1100, number % 8);
        let make = || recall::sample(&filler, &mut Draws::of(SEED, 8, number as u64), distance, facts, alignment);
        let sample = make();
        assert_eq!(sample, make());
        assert!(sample.start % 8 == alignment && sample.start >= 100 && (facts > 4 || sample.start < 108));
        assert_eq!(&sample.prompt[sample.told..sample.told + 4], sample.answer);
        let query = sample.prompt.rfind("The code of ").unwrap();
        assert_eq!(query, sample.start + 28 + distance, "the distance lies between fact and query");
        assert_eq!(sample.prompt.matches("The code of ").count(), facts + 1);
        let names: BTreeSet<&str> =
            sample.prompt.match_indices("The code of ").map(|(at, _)| &sample.prompt[at + 12..at + 18]).collect();
        assert_eq!(names.len(), facts);
        for name in names {
            assert!(logic_mix::class_of(name) >= 95 && !trained.contains(name), "{name}");
        }
    }
}

#[test]
fn chains_are_followed_by_who_knows_them_and_guessed_one_time_in_six() {
    let filler = Filler::generated(SEED);
    let options = multihop::Options { n: 300, ..Default::default() };
    let run = |view| multihop::run(&mut Copier::new(view), "model", &options, &filler, &mut |_, _| {}).unwrap();
    for row in run(usize::MAX) {
        assert_eq!((row.choice.rate, row.exact.rate), (1.0, 1.0), "{row:?}");
    }
    // Who sees the query alone prefers no name: the first in the alphabet is right one time in six. Binomial(300, 1/6): standard
    // deviation 0.0215, five of them either way.
    for row in run(30) {
        assert!((row.choice.rate - 1.0 / 6.0).abs() < 0.108 && row.exact.hits == 0, "{row:?}");
    }
    // The printed chance is what the best rule gets that sees of each name whether it gives and receives: counted over all starts.
    for steps in multihop::STEPS {
        let starts = multihop::NAMES - steps;
        let role = |name: usize| (name > 0, name + 1 < multihop::NAMES);
        let mut best = 0.0;
        for role_of_start in [role(0), role(1)] {
            let of: Vec<usize> = (0..starts).filter(|&start| role(start) == role_of_start).collect();
            // Of a role, guessed is one of the candidates that have it.
            let rate = |guess: (bool, bool)| -> f64 {
                let among = |start: usize| (0..multihop::NAMES).filter(|&c| c != start && role(c) == guess).count();
                of.iter().filter(|&&s| role(s + steps) == guess).map(|&s| 1.0 / among(s) as f64).sum()
            };
            best += [(true, true), (true, false), (false, true)].map(rate).into_iter().fold(0.0, f64::max);
        }
        let printed = multihop::chance(steps);
        assert!((best / starts as f64 - printed).abs() < 1e-12 && printed > 1.0 / 6.0, "{steps}: {best} {printed}");
    }
    for steps in multihop::STEPS {
        for number in 0..200 {
            let sample = multihop::sample(&filler, &mut Draws::of(SEED, 8, number), steps);
            assert_eq!(sample, multihop::sample(&filler, &mut Draws::of(SEED, 8, number), steps));
            assert_eq!(sample.prompt.matches(" gives the key to ").count(), 6);
            let initials: BTreeSet<&str> = sample.candidates.iter().map(|c| &c[..1]).collect();
            assert!(initials.len() == 6 && sample.candidates.iter().all(|c| logic_mix::class_of(c) >= 95));
            let start = &sample.prompt[sample.prompt.rfind("Start at ").unwrap() + 9..][..6];
            assert!(!sample.candidates.iter().any(|c| c == start));
            // 900 bytes of filler, six facts of 32 and the query of 26.
            assert_eq!(sample.prompt.len(), 900 + 6 * 32 + 26);
        }
    }
}

#[test]
fn what_a_tokenizer_cannot_write_and_impossible_cells_are_refused_by_name() {
    let filler = Filler::generated(SEED);
    let mut model = Copier::new(usize::MAX);
    model.tokenizer = Tokenizer::Char(
        CharTokenizer::train(["abcdefghijklmnopqrstuvwxyz .,ABCDEFGHIJKLMNOPQRSTUVWXYZ"], SpecialTokens::none())
            .unwrap(),
    );
    // Before any text is asked: one that lacks digits, one that lacks a single letter of names, and one that lacks nothing.
    let without = |missing: char| {
        let all = "abcdefghijklmnopqrstuvwxyz .,:ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789".replace(missing, "");
        Tokenizer::Char(CharTokenizer::train([all.as_str()], SpecialTokens::none()).unwrap())
    };
    let named = |result: lynx_gpu::Result<()>| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains("runs/third") && message.contains("byte"), "{message}");
    };
    for missing in ['7', 'R', 'v'] {
        named(recall::check(&without(missing), "runs/third", &filler));
    }
    for missing in ['3', 'R', 'v', ':'] {
        named(multihop::check(&without(missing), "runs/third", &filler));
    }
    recall::check(&without('!'), "runs/fine", &filler).unwrap();
    multihop::check(&without('!'), "runs/fine", &filler).unwrap();
    let options = recall::Options { n: 1, distances: vec![16], ..Default::default() };
    let message = recall::run(&mut model, "runs/letters", &options, &filler, &mut |_, _| {}).unwrap_err().to_string();
    assert!(["runs/letters", "tokenizer.kind", "byte"].iter().all(|word| message.contains(word)), "{message}");
    let refused = |edit: &dyn Fn(&mut recall::Options), word: &str| {
        let mut options = recall::Options::default();
        edit(&mut options);
        let message = options.validate().unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    };
    refused(&|o| o.n = 0, "--n 0");
    refused(&|o| o.facts = vec![0], "--facts 0");
    refused(&|o| o.facts = vec![], "--facts");
    refused(&|o| o.distances = vec![usize::MAX], "--distances");
    refused(&|o| o.alignments = vec![8], "--alignments 8");
}
