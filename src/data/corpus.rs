//! [`TextCorpus`]: the text a model is trained and judged on, before any tokenizer has seen it.

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::ops::Range;

/// How documents relate to the token stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Running text: each split is one document without boundaries, cut into windows anywhere (as in nanoGPT).
    Stream,
    /// Independent short documents, separated by the tokenizer's boundary token.
    Rows,
}

impl Layout {
    pub fn name(self) -> &'static str {
        match self {
            Layout::Stream => "stream",
            Layout::Rows => "rows",
        }
    }
}

/// Documents of one origin in a split, and what share of training they are to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub name: String,
    pub documents: Range<usize>,
    /// UTF-8 bytes of these documents.
    pub bytes: usize,
    /// Share of the bytes that training sees, or of a held-out split's; those of all parts add up to one.
    pub weight: f64,
    /// Bits per byte that no model can stay below on these documents unless it has seen them, where that is known.
    pub floor: Option<f64>,
}

/// Documents of the three splits. `val` or `test` may be empty; `train` may not.
#[derive(Clone, Debug)]
pub struct TextCorpus {
    /// For people: "verbs (verbs:look,like,see,eat)" or the path of the file.
    pub name: String,
    pub layout: Layout,
    pub train: Vec<String>,
    pub val: Vec<String>,
    pub test: Vec<String>,
    /// Of a mix of origins: what each one weighs. Empty where every document is seen as often as every other.
    pub parts: Vec<Part>,
    /// Of a mix of origins: where each one's held-out documents are.
    pub val_parts: Vec<Part>,
    pub test_parts: Vec<Part>,
}

impl TextCorpus {
    pub fn new(
        name: String,
        layout: Layout,
        train: Vec<String>,
        val: Vec<String>,
        test: Vec<String>,
    ) -> Result<TextCorpus> {
        let (parts, val_parts, test_parts) = (vec![], vec![], vec![]);
        let corpus = TextCorpus { name, layout, train, val, test, parts, val_parts, test_parts };
        if corpus.train.iter().all(String::is_empty) {
            return Err(Error::Data(format!("{}: the training split is empty; give more text", corpus.name)));
        }
        Ok(corpus)
    }

    /// The splits with their names, in the order train, val, test.
    pub fn splits(&self) -> [(&'static str, &[String]); 3] {
        [("train", &self.train), ("val", &self.val), ("test", &self.test)]
    }

    /// Every document of every split. Tokenizers are trained on these: their alphabet and merges must cover what is
    /// held out too, or validation text would have no encoding (characters) or a much longer one (merges).
    pub fn documents(&self) -> impl Iterator<Item = &str> {
        [&self.train, &self.val, &self.test].into_iter().flatten().map(String::as_str)
    }

    /// SHA-256 over layout, splits and documents (each preceded by its length, so boundaries count too).
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.layout.name());
        for (name, documents) in self.splits() {
            hash.update(name);
            hash.update((documents.len() as u64).to_le_bytes());
            for document in documents {
                hash.update((document.len() as u64).to_le_bytes());
                hash.update(document);
            }
        }
        for part in &self.parts {
            hash.update(&part.name);
            hash.update((part.documents.end as u64).to_le_bytes());
            hash.update(part.weight.to_le_bytes());
        }
        super::files::hex(&hash.finalize())
    }

    /// The same documents in small letters.
    pub fn lowercase(mut self) -> Self {
        for document in self.train.iter_mut().chain(&mut self.val).chain(&mut self.test) {
            *document = document.to_lowercase();
        }
        let splits =
            [(&self.train, &mut self.parts), (&self.val, &mut self.val_parts), (&self.test, &mut self.test_parts)];
        for (documents, parts) in splits {
            parts.iter_mut().for_each(|part| part.bytes = Self::bytes(&documents[part.documents.clone()]));
        }
        self
    }

    /// UTF-8 bytes of a split's documents.
    pub fn bytes(documents: &[String]) -> usize {
        documents.iter().map(String::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_depends_on_boundaries_splits_and_layout() {
        let make = |layout, train: &[&str], val: &[&str]| {
            let owned = |docs: &[&str]| docs.iter().map(|d| d.to_string()).collect();
            TextCorpus::new("c".into(), layout, owned(train), owned(val), vec![]).unwrap().fingerprint()
        };
        let all = [
            make(Layout::Rows, &["ab", "c"], &[]),
            make(Layout::Rows, &["a", "bc"], &[]),
            make(Layout::Rows, &["ab"], &["c"]),
            make(Layout::Stream, &["ab", "c"], &[]),
        ];
        for i in 0..all.len() {
            for j in 0..i {
                assert_ne!(all[i], all[j]);
            }
        }
        assert!(TextCorpus::new("c".into(), Layout::Rows, vec![], vec!["a".into()], vec![]).is_err());
    }
}
