//! The state after a text in a file, so that a long text is read once: safetensors with the states, the logits after the last token
//! and the newest tokens, and in its metadata what it belongs to.

use super::Session;
use super::carried::TextState;
use crate::data::files::hex;
use crate::tensor::{HostData, HostTensor};
use crate::train::files::write_atomic;
use crate::{Error, Result};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::Path;

const KIND: &str = "lynx-gpu text state";
const VERSION: &str = "1";
const LOGITS: &str = "logits";
const NEWEST: &str = "newest_tokens";

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::Checkpoint(format!("{}: {what}", path.display()))
}

/// SHA-256 (hex) over what a file says: the position and every tensor.
fn digest<'a>(position: u64, tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort_unstable();
    let mut hasher = Sha256::new();
    hasher.update(position.to_le_bytes());
    for (name, bytes) in tensors {
        hasher.update(name);
        hasher.update(bytes);
    }
    hex(&hasher.finalize())
}

impl Session {
    /// SHA-256 over the model's shape and options, its tokenizer and its weights: a state belongs to one model.
    fn fingerprint(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        hasher.update(self.model.identity());
        hasher.update(self.tokenizer.fingerprint());
        for p in &self.parameters {
            hasher.update(&p.name);
            hasher.update(self.store.read(&p.name)?.to_bytes());
        }
        Ok(hex(&hasher.finalize()))
    }

    /// Writes the state after the text read so far.
    pub fn save_text_state(&mut self, path: &Path) -> Result<()> {
        let TextState { position, newest, logits, states } = self.text_state()?;
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> =
            states.into_iter().map(|(name, t)| (name, Dtype::F32, t.shape.clone(), t.to_bytes().to_vec())).collect();
        let bytes = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
        tensors.push((LOGITS.into(), Dtype::F32, vec![logits.len()], bytes));
        let bytes = newest.iter().flat_map(|v| v.to_le_bytes()).collect();
        tensors.push((NEWEST.into(), Dtype::U32, vec![newest.len()], bytes));
        let metadata = HashMap::from([
            ("kind".into(), KIND.into()),
            ("version".into(), VERSION.into()),
            ("model".into(), self.fingerprint()?),
            ("summary".into(), self.model.summary()),
            ("position".into(), position.to_string()),
            ("sha256".into(), digest(position, tensors.iter().map(|(name, _, _, bytes)| (name.as_str(), &bytes[..])))),
        ]);
        let views: Vec<(&str, TensorView)> = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?)))
            .collect::<Result<_, safetensors::SafeTensorError>>()
            .map_err(|e| damaged(path, e))?;
        let file = safetensors::serialize(views, Some(metadata)).map_err(|e| damaged(path, e))?;
        write_atomic(path, &file)
    }

    /// Goes on after the text whose state `path` holds; gives the number of its tokens.
    ///
    /// # Errors
    /// `Error::Checkpoint` for a file that is no state, is damaged, of another format version, or of another model. The session is then
    /// as it was.
    pub fn load_text_state(&mut self, path: &Path) -> Result<u64> {
        self.carries()?;
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let unreadable = |e| damaged(path, format!("not a readable text state: {e}"));
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(unreadable)?;
        let file = SafeTensors::deserialize(&bytes).map_err(unreadable)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let get = |key: &str| metadata.get(key).map(String::as_str).unwrap_or("");
        if get("kind") != KIND {
            return Err(damaged(path, "is a safetensors file but no text state; `generate --save-state` writes one"));
        }
        if get("version") != VERSION {
            return Err(damaged(
                path,
                format!(
                    "a text state of version {}, this program reads {VERSION}: read the text again",
                    get("version")
                ),
            ));
        }
        if get("model") != self.fingerprint()? {
            return Err(damaged(
                path,
                format!(
                    "the state of another model ({}); this one is \"{}\" with other weights or another tokenizer: read the text again with it",
                    get("summary"),
                    self.model.summary()
                ),
            ));
        }
        let position = get("position").parse().ok().filter(|p| *p < 1 << 53);
        let position: u64 = position.ok_or_else(|| damaged(path, "has no position in the text"))?;
        let tensors = file.tensors();
        if get("sha256") != digest(position, tensors.iter().map(|(name, view)| (name.as_str(), view.data()))) {
            return Err(damaged(path, "does not hold what was written to it: read the text again"));
        }
        let raw = |name: &str, dtype: Dtype| {
            let view = file.tensor(name).map_err(|_| damaged(path, format!("has no '{name}'")))?;
            if view.dtype() != dtype {
                return Err(damaged(path, format!("'{name}' is {:?} instead of {dtype:?}", view.dtype())));
            }
            Ok(view)
        };
        let words =
            |bytes: &[u8]| -> Vec<[u8; 4]> { bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect() };
        let floats = |bytes: &[u8]| -> Vec<f32> { words(bytes).into_iter().map(f32::from_le_bytes).collect() };
        let mut states = Vec::new();
        for (name, ty) in self.states()? {
            let view = raw(&name, Dtype::F32)?;
            if view.shape() != ty.shape {
                return Err(damaged(path, format!("'{name}' is {:?}, the model wants {ty}", view.shape())));
            }
            let data = floats(view.data());
            if data.iter().any(|v| !v.is_finite()) {
                return Err(damaged(path, format!("'{name}' holds a number that is not finite")));
            }
            states.push((name, HostTensor { shape: ty.shape, data: HostData::F32(data) }));
        }
        let logits = floats(raw(LOGITS, Dtype::F32)?.data());
        if logits.len() != self.model.vocab_size() {
            return Err(damaged(path, format!("{} logits for {} tokens", logits.len(), self.model.vocab_size())));
        }
        let newest: Vec<u32> = words(raw(NEWEST, Dtype::U32)?.data()).into_iter().map(u32::from_le_bytes).collect();
        if let Some(id) = newest.iter().find(|id| **id as usize >= self.model.vocab_size()) {
            return Err(damaged(path, format!("token {id} is outside the vocabulary of {}", self.model.vocab_size())));
        }
        self.set_text_state(TextState { position, newest, logits, states })?;
        Ok(position)
    }
}
