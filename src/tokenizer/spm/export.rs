//! A SentencePiece BPE as a Hugging Face `tokenizer.json`.

use super::{PieceKind, SPACE_MARK, SpmTokenizer};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

impl SpmTokenizer {
    /// The text of a piece as SentencePiece writes it. User-defined tokens are searched for in the text as it is, so their spaces stay.
    pub(crate) fn written(&self, id: u32) -> String {
        let piece = &self.pieces[id as usize];
        match piece.kind {
            PieceKind::Normal | PieceKind::Unused => piece.text.replace(' ', &SPACE_MARK.to_string()),
            _ => piece.text.clone(),
        }
    }

    /// Pairs of pieces that together are a piece, best score of that piece first; among its pairs the one with the smaller ids first.
    /// These are the merges that the `transformers` library derives from a SentencePiece file.
    fn merges(&self) -> Vec<(u32, u32)> {
        let mut found: Vec<(f32, u32, u32, u32)> = Vec::new();
        for id in self.ids.iter() {
            let text = &self.pieces[id as usize].text;
            for (at, _) in text.char_indices().skip(1) {
                if let (Some(left), Some(right)) = (self.id(&text[..at]), self.id(&text[at..])) {
                    found.push((self.pieces[id as usize].score, id, left, right));
                }
            }
        }
        found.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
        found.into_iter().map(|(_, _, left, right)| (left, right)).collect()
    }

    /// The content of a `tokenizer.json`: BPE with byte fallback. It gives the same ids wherever no two pieces have the same score (where
    /// they have, the leftmost is joined first here and the one with the smaller id there).
    pub(crate) fn to_huggingface(&self) -> Value {
        let mark = SPACE_MARK.to_string();
        let mut vocab = Map::new();
        let mut added = Vec::new();
        // A user-defined run of spaces may be written like a normal one; the file's dictionary then keeps the added token only.
        let mut names: HashMap<String, u32> = HashMap::new();
        for id in 0..self.pieces.len() as u32 {
            let kind = self.pieces[id as usize].kind;
            let mut name = self.written(id);
            if name.is_empty() || names.contains_key(&name) {
                name = format!("[UNREACHABLE_{id}]");
            }
            names.insert(name.clone(), id);
            vocab.insert(name.clone(), id.into());
            if matches!(kind, PieceKind::Control | PieceKind::Unknown | PieceKind::UserDefined) {
                added.push(json!({
                    "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": kind != PieceKind::UserDefined,
                }));
            }
        }
        let merges: Vec<Value> =
            self.merges().into_iter().map(|(left, right)| json!([self.written(left), self.written(right)])).collect();
        let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": mark });
        let normalizer = match self.options.add_space_prefix {
            true => json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": mark }, replace] }),
            false => replace,
        };
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": mark }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if self.options.add_space_prefix {
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": null,
            "post_processor": crate::tokenizer::huggingface::post_processor(&self.roles, |id| self.written(id)),
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": self.unknown.map(|id| self.written(id)),
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "byte_fallback": self.bytes.iter().all(Option::is_some), "ignore_merges": false, "vocab": vocab, "merges": merges,
            },
        })
    }
}
