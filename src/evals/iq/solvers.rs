//! Who answers: a model, and baselines that do not reason.

use super::{Cell, Item, LIMIT};
use crate::Result;
use crate::data::CorpusSource;
use crate::data::logic_mix::export::{self, Record};
use crate::data::logic_mix::{self, Kind, Split, check};
use crate::data::ngram::{ALPHA, NGramLm};
use crate::evals::encode;
use crate::infer::{NextToken, Sampling, generate};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// Bytes of generated text that baselines learn from where a model was trained on something else.
const GENERATED: u64 = 2_000_000;

/// Whoever answers problems.
pub trait Solver {
    fn name(&self) -> String;

    /// Whether models have to beat it before anything is claimed of them.
    fn is_baseline(&self) -> bool {
        false
    }

    /// The text that follows [`Item::prompt`].
    fn reply(&mut self, item: &Item) -> Result<String>;
}

/// A model, read greedily.
pub struct Model<'a> {
    name: String,
    model: &'a mut dyn NextToken,
}

impl<'a> Model<'a> {
    /// `name` stands in messages and tables. Refuses a model whose tokenizer cannot write the problems.
    pub fn new(name: &str, model: &'a mut dyn NextToken) -> Result<Self> {
        for cell in Cell::ALL {
            for item in super::items(cell, 30, logic_mix::SEED) {
                encode(model.tokenizer(), name, &(item.prompt() + &item.worked))?;
            }
        }
        Ok(Model { name: name.to_owned(), model })
    }
}

impl Solver for Model<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    /// At most [`LIMIT`] tokens or bytes, up to the first empty line or boundary token.
    fn reply(&mut self, item: &Item) -> Result<String> {
        encode(self.model.tokenizer(), &self.name, &item.prompt())?;
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let mut text = String::new();
        let reply = generate(self.model, &item.prompt(), LIMIT, &greedy, &mut |piece| {
            text.push_str(piece);
            !text.contains("\n\n") && text.len() < LIMIT
        })?;
        Ok(reply.text)
    }
}

/// What baselines learn from: the training documents of a logic mix.
pub struct Training {
    pub records: Vec<(Kind, Record)>,
    /// For people.
    pub about: String,
}

impl Training {
    /// Training documents of a generated mix of this many bytes.
    pub fn generated(seed: u64, bytes: u64) -> Self {
        let mut records = vec![];
        for kind in Kind::SYNTHETIC {
            let target = (kind.weight() * bytes as f64).ceil() as u64;
            for document in logic_mix::documents(seed, kind, target) {
                if Split::of(&document.key) == Split::Train {
                    records.push((kind, Record { key: document.key, text: document.text }));
                }
            }
        }
        Training { records, about: format!("a generated logic mix of {bytes} bytes, seed {seed}") }
    }

    /// The training documents of a run: the same text that the model has seen, if that was a logic mix; else a generated one.
    pub fn of(source: &CorpusSource) -> Result<Self> {
        match source {
            CorpusSource::LogicMix => Ok(Self::generated(logic_mix::SEED, logic_mix::BYTES)),
            CorpusSource::LogicMixFolder { path } => {
                let corpus = export::read(path)?;
                let train = corpus.parts.into_iter().filter(|((split, _), _)| *split == Split::Train);
                let records = train.flat_map(|((_, kind), part)| part.into_iter().map(move |record| (kind, record)));
                Ok(Training { records: records.collect(), about: path.display().to_string() })
            }
            _ => Ok(Self::generated(logic_mix::SEED, GENERATED)),
        }
    }

    /// Question and reply of the documents of a kind.
    fn dialogues(&self, kind: Kind) -> impl Iterator<Item = (&Record, &str, &str)> {
        let of_kind = self.records.iter().filter(move |(k, _)| *k == kind).map(|(_, record)| record);
        of_kind.filter_map(|record| {
            let (question, reply) = record.text.strip_prefix("User: ")?.split_once("\nCoeus:")?;
            Some((record, question, reply))
        })
    }
}

/// Predicts a byte from the four before it.
pub struct NGram {
    modes: HashMap<Box<[u32]>, u32>,
}

const ORDER: usize = 5;
/// Stands around documents; no byte has this id.
const END: u32 = 256;

impl NGram {
    pub fn fit(training: &Training) -> Result<Self> {
        let mut model = NGramLm::new(ORDER, ALPHA, END as usize + 1)?;
        for (_, record) in &training.records {
            let bytes = record.text.bytes().map(u32::from);
            model.count(&[END].into_iter().chain(bytes).chain([END]).collect::<Vec<_>>());
        }
        Ok(NGram { modes: model.modes() })
    }
}

impl Solver for NGram {
    fn name(&self) -> String {
        format!("{ORDER}-gram of bytes")
    }

    fn is_baseline(&self) -> bool {
        true
    }

    fn reply(&mut self, item: &Item) -> Result<String> {
        let mut bytes = item.prompt().into_bytes();
        let start = bytes.len();
        while bytes.len() < start + LIMIT && !bytes[start..].ends_with(b"\n\n") {
            let context: Vec<u32> = bytes[bytes.len() - (ORDER - 1)..].iter().map(|&b| u32::from(b)).collect();
            // A context that was never seen, or that always ends a document, ends the reply.
            match self.modes.get(context.as_slice()).map(|&id| u8::try_from(id)) {
                Some(Ok(byte)) => bytes.push(byte),
                _ => break,
            }
        }
        Ok(String::from_utf8_lossy(&bytes[start..]).into_owned())
    }
}

/// Copies the reply to the nearest training problem. Sums, products and algorithms: the least edit distance between keys, in
/// characters. Arguments: between questions, in words (their keys hold the form, which is the answer). The first among equals.
pub struct NearestCopy {
    /// By kind: what is compared, and the reply.
    known: BTreeMap<Kind, Vec<(Vec<u32>, String)>>,
    words: HashMap<String, u32>,
}

impl NearestCopy {
    pub fn fit(training: &Training) -> Self {
        let mut words = HashMap::new();
        let known = Kind::SYNTHETIC.map(|kind| {
            let of = |(record, question, reply): (&Record, &str, &str)| {
                (units(kind, &record.key, question, &mut words), reply.to_owned())
            };
            (kind, training.dialogues(kind).map(of).collect())
        });
        NearestCopy { known: known.into_iter().collect(), words }
    }
}

/// What edits are counted in: words of an argument, characters of any other key.
fn units(kind: Kind, key: &str, question: &str, words: &mut HashMap<String, u32>) -> Vec<u32> {
    if kind != Kind::Syllogism {
        return key.chars().map(u32::from).collect();
    }
    let split = question.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let mut number = |word: &str| {
        let next = words.len() as u32;
        *words.entry(word.to_lowercase()).or_insert(next)
    };
    split.map(&mut number).collect()
}

impl Solver for NearestCopy {
    fn name(&self) -> String {
        "nearest copy".into()
    }

    fn is_baseline(&self) -> bool {
        true
    }

    fn reply(&mut self, item: &Item) -> Result<String> {
        let kind = item.cell.kind();
        let asked = units(kind, &item.key, &item.question, &mut self.words);
        let known = self.known.get(&kind).map_or(&[][..], Vec::as_slice);
        let nearest = known.par_iter().enumerate().min_by_key(|(place, (of, _))| (edits(&asked, of), *place));
        Ok(nearest.map_or(String::new(), |(_, (_, reply))| reply.clone()))
    }
}

/// The least number of insertions, deletions and replacements between two sequences (Levenshtein 1966).
fn edits(a: &[u32], b: &[u32]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Gives the most frequent answer of the kind; to arguments, the most frequent verdict and form.
pub struct Majority {
    replies: BTreeMap<Kind, String>,
}

impl Majority {
    pub fn fit(training: &Training) -> Self {
        let replies = Kind::SYNTHETIC.map(|kind| {
            let (mut answers, mut forms) = (BTreeMap::new(), BTreeMap::new());
            for (_, _, reply) in training.dialogues(kind) {
                let Ok(reply) = check::reply(reply.trim()) else { continue };
                // The verdict is the last word; the conclusion before it is another one each time.
                let said = match kind {
                    Kind::Syllogism => reply.conclusion.rsplit(' ').next().unwrap_or_default().to_owned(),
                    _ => reply.conclusion,
                };
                *answers.entry(said).or_insert(0usize) += 1;
                *forms.entry(reply.steps[0].clone()).or_insert(0usize) += 1;
            }
            let (answer, form) = (most(answers), most(forms));
            let reply = match kind {
                Kind::Syllogism => format!(" Step 1: {form}. Thus {answer}.\n\n"),
                _ => format!(" {answer}.\n\n"),
            };
            (kind, reply)
        });
        Majority { replies: replies.into_iter().collect() }
    }
}

/// The most frequent one, the first in order among equals.
fn most(counts: BTreeMap<String, usize>) -> String {
    let best = counts.into_iter().rev().max_by_key(|(_, count)| *count);
    best.map_or(String::new(), |(text, _)| text)
}

impl Solver for Majority {
    fn name(&self) -> String {
        "majority".into()
    }

    fn is_baseline(&self) -> bool {
        true
    }

    fn reply(&mut self, item: &Item) -> Result<String> {
        Ok(self.replies.get(&item.cell.kind()).cloned().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_the_published_ones() {
        let count = |a: &str, b: &str| {
            let [a, b] = [a, b].map(|s| s.chars().map(u32::from).collect::<Vec<_>>());
            edits(&a, &b)
        };
        assert_eq!(
            (count("kitten", "sitting"), count("", "abc"), count("abc", ""), count("flaw", "lawn")),
            (3, 3, 3, 2)
        );
    }

    #[test]
    fn baselines_say_what_their_training_text_says() {
        let training = Training::generated(logic_mix::SEED, 200_000);
        let mut copy = NearestCopy::fit(&training);
        for kind in Kind::SYNTHETIC {
            for (record, question, reply) in training.dialogues(kind).take(20) {
                let cell = Cell::ALL.into_iter().find(|c| c.kind() == kind).unwrap();
                let item = Item {
                    cell,
                    key: record.key.clone(),
                    question: question.into(),
                    expected: super::super::Expected::Integer(0),
                    worked: String::new(),
                };
                // A problem of the training text has itself as its nearest (or one that reads the same).
                assert_eq!(copy.reply(&item).unwrap(), reply);
            }
        }
        let majority = Majority::fit(&training);
        assert!(majority.replies[&Kind::Syllogism].ends_with("alid.\n\n"), "{:?}", majority.replies);
        assert_eq!(most(BTreeMap::from([("b".into(), 2), ("a".into(), 2), ("c".into(), 1)])), "a");
        // Four bytes decide the next: every prompt ends alike, so every reply is the same.
        let mut ngram = NGram::fit(&training).unwrap();
        let [a, b] = [Cell::A4, Cell::S].map(|cell| ngram.reply(&super::super::items(cell, 1, 1)[0]).unwrap());
        assert!(a == b && a.starts_with(" Step 1: "), "{a:?}");
    }
}
