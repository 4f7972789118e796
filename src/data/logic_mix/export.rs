//! The corpus as files: one JSON line a document, one file for each split and kind, and a manifest with the hash, the size and the
//! entropy floor of each.

use super::literature::{blocks, clean, overlap, split_of};
use super::{Kind, Split, check, document, documents};
use crate::data::files::{self, pretty, read_utf8, sha256_hex, write_atomic};
use crate::data::{Layout, Part, TextCorpus};
use crate::{Error, Result};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub const MANIFEST: &str = "MANIFEST.json";
pub const NAME: &str = "logic-mix";
/// Changes whenever a byte of the generated files does.
pub const VERSION: &str = "1.0.0";
/// Of what a text surely costs (its random draws), this much is asked for: a model may know the generator's habits better than the
/// count of draws does.
pub const FLOOR: f64 = 0.9;
/// Longest run of bytes that held-out literature may share with training, and how much of it.
const RUN: usize = 64;
const SHARED: f64 = 0.005;

/// What is made.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// Of the whole mix: each synthetic kind gets its weight of it, whether or not there is literature.
    pub bytes: u64,
    /// UTF-8 text files, one book each.
    pub literature: Vec<PathBuf>,
    /// Add texts whose facts come back ([`super::recall`]).
    pub recall: bool,
}

/// A document of a written corpus.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub key: String,
    pub text: String,
}

/// A written corpus.
#[derive(Clone, Debug, Default)]
pub struct Corpus {
    /// By split and kind; those that are empty are there too.
    pub parts: BTreeMap<(Split, Kind), Vec<Record>>,
    /// Bits per byte that no model can stay below on documents it has not seen, of the generated kinds.
    pub floors: BTreeMap<(Split, Kind), f64>,
    /// SHA-256 of the manifest.
    pub fingerprint: String,
}

fn file_name(split: Split, kind: Kind) -> String {
    format!("{}.{}.jsonl", split.name(), kind.name())
}

#[derive(Default)]
struct Pile {
    lines: String,
    documents: usize,
    bytes: usize,
    bits: f64,
}

impl Pile {
    fn add(&mut self, key: &str, text: &str, bits: f64) {
        self.lines += &(json!({ "key": key, "text": text }).to_string() + "\n");
        self.documents += 1;
        self.bytes += text.len();
        self.bits += bits;
    }
}

/// Reads the books: their names without folder and ending, and their cleaned text.
fn books(paths: &[PathBuf]) -> Result<Vec<(String, String)>> {
    let mut seen = BTreeMap::new();
    let mut books = vec![];
    for path in paths {
        let text = clean(&read_utf8(path)?);
        if text.is_empty() {
            return Err(Error::Data(format!(
                "{}: nothing is left of it as ASCII text; give an English text file",
                path.display()
            )));
        }
        // The same book twice would stand on both sides of the split.
        if let Some(first) = seen.insert(sha256_hex(text.as_bytes()), path) {
            return Err(Error::Data(format!(
                "{} and {} are one text; give each book once",
                first.display(),
                path.display()
            )));
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        books.push((name, text));
    }
    Ok(books)
}

/// Memory for one byte of a mix while it is made: its documents, and the lines of its files.
const ROOM: u64 = 3;

/// Refuses a mix that is larger than memory: it is made whole before the first file is written.
fn check_room(bytes: u64, available: Option<u64>) -> Result<()> {
    match available {
        Some(free) if bytes.saturating_mul(ROOM) > free => Err(Error::Config(format!(
            "a mix of {bytes} bytes takes about {} of memory while it is made, and {} are free; ask for at most --bytes {}",
            crate::config::size::show(bytes.saturating_mul(ROOM)),
            crate::config::size::show(free),
            free / ROOM
        ))),
        _ => Ok(()),
    }
}

/// The least size of a mix in which every split has a generated document, whatever its kind: classes of problems are drawn, so it
/// depends on the seed.
fn least_bytes(seed: u64) -> u64 {
    // For a kind and a split, the size at which the split's first document of that kind comes.
    let first = |kind: Kind, split: Split| {
        let mut before = 0u64;
        for index in 0.. {
            let document = document(seed, kind, index);
            if Split::of(&document.key) == split {
                break;
            }
            before += document.text.len() as u64;
        }
        // A document is written when those before it fall short of the kind's bytes.
        let near = (before as f64 / kind.weight()) as u64;
        (near.saturating_sub(1)..).find(|&bytes| target(kind, bytes) > before).unwrap_or(near)
    };
    let of = |split| Kind::SYNTHETIC.into_iter().map(|kind| first(kind, split)).min().unwrap_or(0);
    Split::ALL.into_iter().map(of).max().unwrap_or(0)
}

/// Generates the corpus and writes it to `folder`. Returns the manifest.
///
/// # Errors
/// `Error::Config` for a mix too small to fill its splits or of more than memory holds, before anything is written; those of reading books and writing
/// files.
pub fn write(folder: &Path, options: &Options) -> Result<Value> {
    if options.bytes == 0 {
        return Err(Error::Config(format!(
            "an empty mix: bytes = 0; give a number of bytes, such as {}",
            super::BYTES
        )));
    }
    check_room(options.bytes, crate::device::host::available_bytes())?;
    let least = least_bytes(options.seed);
    if options.bytes < least {
        return Err(Error::Config(format!(
            "a mix of {} bytes of seed {} has an empty split: its training, validation and test texts need at least --bytes {least}",
            options.bytes, options.seed
        )));
    }
    let books = books(&options.literature)?;
    let mut parts: BTreeMap<(Split, Kind), Pile> = BTreeMap::new();
    for (number, (name, text)) in books.iter().enumerate() {
        for (block, text) in blocks(text).into_iter().enumerate() {
            let split = split_of(number as u64, block as u64);
            parts.entry((split, Kind::Literature)).or_default().add(&format!("{name}|{block}"), text, 0.0);
        }
    }
    for kind in Kind::SYNTHETIC.into_iter().chain(options.recall.then_some(Kind::Recall)) {
        for document in documents(options.seed, kind, target(kind, options.bytes)) {
            parts.entry((Split::of(&document.key), kind)).or_default().add(
                &document.key,
                &document.text,
                document.bits,
            );
        }
    }
    let mut entries = serde_json::Map::new();
    for (&(split, kind), part) in &parts {
        let mut entry = json!({
            "split": split.name(), "kind": kind.name(), "documents": part.documents, "bytes": part.bytes,
            "sha256": sha256_hex(part.lines.as_bytes()),
        });
        if kind != Kind::Literature {
            entry["random_bits_per_byte"] = json!(part.bits / part.bytes as f64);
            entry["floor_bits_per_byte"] = json!(FLOOR * part.bits / part.bytes as f64);
        }
        entries.insert(file_name(split, kind), entry);
    }
    let weights = weights(parts.keys().map(|(_, kind)| *kind).collect());
    let weights: BTreeMap<&str, f64> = weights.into_iter().map(|(kind, weight)| (kind.name(), weight)).collect();
    let manifest = json!({
        "name": NAME,
        "version": VERSION,
        "seed": options.seed,
        "generator": format!("lynx-gpu {}", env!("CARGO_PKG_VERSION")),
        "bytes_asked_for": options.bytes,
        "weights": weights,
        "literature": books.iter().map(|(name, text)| {
            json!({ "name": name, "bytes": text.len(), "sha256": sha256_hex(text.as_bytes()) })
        }).collect::<Vec<_>>(),
        "files": entries,
    });
    for (&(split, kind), part) in &parts {
        write_atomic(&folder.join(file_name(split, kind)), part.lines.as_bytes())?;
    }
    // What an earlier mix left here and this one does not have would be read as part of it by eye.
    for (split, kind) in Split::ALL.into_iter().flat_map(|s| Kind::ALL.map(|k| (s, k))) {
        let path = folder.join(file_name(split, kind));
        if !parts.contains_key(&(split, kind)) && path.exists() {
            std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
    }
    // Last, so that a folder with a manifest is a complete one.
    write_atomic(&folder.join(MANIFEST), pretty(&manifest).as_bytes())?;
    Ok(manifest)
}

/// The manifest of a folder, or nothing if the folder holds another corpus.
pub fn read_manifest(folder: &Path) -> Result<Option<Value>> {
    let manifest = files::read_manifest(&folder.join(MANIFEST))?;
    Ok((manifest["name"] == NAME).then_some(manifest))
}

/// Reads a written corpus and checks every file against its hash.
pub fn read(folder: &Path) -> Result<Corpus> {
    let path = folder.join(MANIFEST);
    let wrong = |what: String| {
        Error::Data(format!("{}: {what}; write the corpus again with data logic-mix --out", path.display()))
    };
    let manifest = read_manifest(folder)?.ok_or_else(|| wrong(format!("this is no {NAME} corpus")))?;
    let fingerprint = sha256_hex(pretty(&manifest).as_bytes());
    let mut corpus = Corpus { parts: BTreeMap::new(), floors: BTreeMap::new(), fingerprint };
    for (split, kind) in Split::ALL.into_iter().flat_map(|s| Kind::ALL.map(|k| (s, k))) {
        let name = file_name(split, kind);
        let part = corpus.parts.entry((split, kind)).or_default();
        let Some(entry) = manifest["files"].get(&name) else { continue };
        corpus.floors.extend(entry["floor_bits_per_byte"].as_f64().map(|floor| ((split, kind), floor)));
        let file = folder.join(&name);
        let lines = read_utf8(&file)?;
        if entry["sha256"] != sha256_hex(lines.as_bytes()) {
            return Err(Error::Data(format!(
                "{}: its content does not have the hash of the manifest; write the corpus again",
                file.display()
            )));
        }
        for (number, line) in lines.lines().enumerate() {
            let value: Value = serde_json::from_str(line)
                .map_err(|e| Error::Data(format!("{}: line {}: {e}", file.display(), number + 1)))?;
            let field = |name: &str| {
                value[name]
                    .as_str()
                    .map(str::to_owned)
                    .ok_or_else(|| Error::Data(format!("{}: line {}: no text {name:?}", file.display(), number + 1)))
            };
            part.push(Record { key: field("key")?, text: field("text")? });
        }
    }
    Ok(corpus)
}

/// What share of the bytes each of these kinds is in training; together they are one.
fn weights(kinds: BTreeSet<Kind>) -> BTreeMap<Kind, f64> {
    let recall = Some(Kind::Recall.weight()).filter(|_| kinds.contains(&Kind::Recall) && kinds.len() > 1);
    let others: f64 = kinds.iter().filter(|&&k| recall.is_none() || k != Kind::Recall).map(|k| k.weight()).sum();
    let rest = |kind: Kind| kind.weight() / others * (1.0 - recall.unwrap_or(0.0));
    kinds
        .into_iter()
        .map(|kind| (kind, recall.filter(|_| kind == Kind::Recall).unwrap_or_else(|| rest(kind))))
        .collect()
}

/// Documents for training: the splits, the training shares of the kinds, and the floors under the loss of those held out.
fn text_corpus(name: String, mut of: impl FnMut(Split, Kind) -> (Vec<String>, Option<f64>)) -> Result<TextCorpus> {
    let mut splits = [vec![], vec![], vec![]];
    let mut parts = [vec![], vec![], vec![]];
    for (place, split) in Split::ALL.into_iter().enumerate() {
        for kind in Kind::ALL {
            let (documents, floor) = of(split, kind);
            let first = splits[place].len();
            if !documents.is_empty() {
                let documents_of = first..first + documents.len();
                let bytes = TextCorpus::bytes(&documents);
                let train = split == Split::Train;
                // What has been learnt by heart has no floor.
                let (weight, floor) = if train { (0.0, None) } else { (bytes as f64, floor) };
                parts[place].push(Part { name: kind.name().into(), documents: documents_of, bytes, weight, floor });
            }
            splits[place].extend(documents);
        }
    }
    for parts in &mut parts[1..] {
        let all: f64 = parts.iter().map(|p: &Part| p.weight).sum();
        parts.iter_mut().for_each(|p| p.weight /= all);
    }
    let weights = weights(parts[0].iter().filter_map(|part| Kind::parse(&part.name)).collect());
    parts[0].iter_mut().zip(weights.into_values()).for_each(|(part, weight)| part.weight = weight);
    let ([train, val, test], [parts, val_parts, test_parts]) = (splits, parts);
    Ok(TextCorpus { parts, val_parts, test_parts, ..TextCorpus::new(name, Layout::Rows, train, val, test)? })
}

/// The generated kinds in their usual size and seed, without files.
pub fn generated() -> Result<TextCorpus> {
    let mut all: BTreeMap<(Split, Kind), (Vec<String>, f64)> = BTreeMap::new();
    for kind in Kind::SYNTHETIC {
        for document in documents(super::SEED, kind, target(kind, super::BYTES)) {
            let (texts, bits) = all.entry((Split::of(&document.key), kind)).or_default();
            texts.push(document.text);
            *bits += document.bits;
        }
    }
    text_corpus(NAME.into(), |split, kind| {
        let Some((texts, bits)) = all.remove(&(split, kind)) else { return (vec![], None) };
        let floor = FLOOR * bits / TextCorpus::bytes(&texts) as f64;
        (texts, Some(floor))
    })
}

/// A written corpus for training.
pub fn load(folder: &Path) -> Result<TextCorpus> {
    if !folder.join(MANIFEST).exists() {
        return Err(Error::Data(format!(
            "{}: a folder without {MANIFEST}; give a text file, or a folder written by data logic-mix --out",
            folder.display()
        )));
    }
    let mut corpus = read(folder)?;
    let mut texts = |split, kind| {
        let part = corpus.parts.remove(&(split, kind)).unwrap_or_default();
        (part.into_iter().map(|r| r.text).collect(), corpus.floors.get(&(split, kind)).copied())
    };
    text_corpus(folder.display().to_string(), &mut texts)
}

/// Bytes of a kind in a mix of `bytes`.
fn target(kind: Kind, bytes: u64) -> u64 {
    (kind.weight() * bytes as f64).ceil() as u64
}

/// A check of a corpus, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    pub name: &'static str,
    /// The first few faults, or what was found in order.
    pub message: Result<String, String>,
}

/// Checks a written corpus: the hashes, that no problem stands in two splits, that each stands in the split of its key, that every
/// worked answer is right (by another program than the one that wrote it), that the seed makes these very documents, and that
/// held-out literature is not in training.
pub fn validate(folder: &Path) -> Result<Vec<Check>> {
    let manifest =
        read_manifest(folder)?.ok_or_else(|| Error::Data(format!("{}: no {NAME} corpus", folder.display())))?;
    let corpus = match read(folder) {
        Ok(corpus) => corpus,
        Err(Error::Data(message)) => return Ok(vec![Check { name: "hashes", message: Err(message) }]),
        Err(other) => return Err(other),
    };
    let mut checks = vec![Check {
        name: "hashes",
        message: Ok(format!("{} files", corpus.parts.values().filter(|p| !p.is_empty()).count())),
    }];
    let mut verdict = |name, faults: Vec<String>, fine: String| {
        let shown = faults.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
        let message = if faults.is_empty() { Ok(fine) } else { Err(format!("{} faults: {shown}", faults.len())) };
        checks.push(Check { name, message });
    };
    let synthetic = || corpus.parts.iter().filter(|((_, kind), _)| *kind != Kind::Literature);

    let mut homes: BTreeMap<&str, BTreeSet<Split>> = BTreeMap::new();
    for ((split, _), part) in &corpus.parts {
        for record in part {
            homes.entry(&record.key).or_default().insert(*split);
        }
    }
    let twice = homes.iter().filter(|(_, s)| s.len() > 1).map(|(key, s)| format!("{key} is in {s:?}")).collect();
    verdict("no problem in two splits", twice, format!("{} problems", homes.len()));

    let strays = synthetic()
        .flat_map(|((split, _), part)| {
            part.iter().filter(|r| Split::of(&r.key) != *split).map(move |r| format!("{} in {}", r.key, split.name()))
        })
        .collect();
    verdict("split of the key", strays, "every problem is in the split of its key".into());

    let records: Vec<(Kind, &Record)> =
        synthetic().flat_map(|((_, kind), part)| part.iter().map(|r| (*kind, r))).collect();
    let faults = records
        .par_iter()
        .filter_map(|(kind, r)| check::check(*kind, &r.text).err().map(|e| format!("{}: {e}", r.key)))
        .collect();
    verdict("worked answers", faults, format!("{} answers done again", records.len()));

    let seed = manifest["seed"]
        .as_u64()
        .ok_or_else(|| Error::Data(format!("{}: the manifest has no seed", folder.display())))?;
    let mut faults = vec![];
    for kind in Kind::SYNTHETIC.into_iter().chain([Kind::Recall]) {
        let mut next = Split::ALL.map(|split| corpus.parts[&(split, kind)].iter());
        let count: usize = next.iter().map(|n| n.len()).sum();
        for index in 0..count as u64 {
            let made = document(seed, kind, index);
            if next[Split::of(&made.key) as usize].next().is_none_or(|r| r.text != made.text) {
                faults.push(format!("{} document {index} differs", kind.name()));
                break;
            }
        }
    }
    verdict("made from the seed", faults, format!("seed {seed}"));

    let texts = |split| corpus.parts[&(split, Kind::Literature)].iter().map(|r| r.text.as_str());
    for split in [Split::Val, Split::Test] {
        let shared = overlap(texts(Split::Train), texts(split), RUN);
        let faults = if shared > SHARED {
            vec![format!("{:.2} % of its runs of {RUN} bytes are in training", 100.0 * shared)]
        } else {
            vec![]
        };
        let name = if split == Split::Val { "literature, val" } else { "literature, test" };
        verdict(name, faults, format!("{:.3} % of runs of {RUN} bytes are in training too", 100.0 * shared));
    }
    Ok(checks)
}

#[cfg(test)]
mod tests;
