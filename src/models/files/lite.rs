//! GGUF-lite files as models of ours. The format says nothing of architectures: this program's files carry the model's configuration and
//! its whole `tokenizer.json`, a line each, and the weights by our names.

use super::links::{LinkedWeights, Tensors, check_range};
use super::{FileFormat, ModelFile, own};
use crate::config::{Config, ModelConfig};
use crate::models::weights::StoredWeight;
use crate::tokenizer::{Roles, Tokenizer};
use crate::{Error, Result};
use formats::gguf_lite::File;
use kernels_cpu::blocks::Format;
use std::cell::RefCell;
use std::path::Path;

/// Keys of the metadata.
pub(super) const MODEL: &str = "lynx.model";
pub(super) const TOKENIZER: &str = "lynx.tokenizer";
/// What single tokens mean, where `tokenizer.json` does not say it.
pub(super) const ROLES: &str = "lynx.tokens";
pub(super) const TEMPLATE: &str = "lynx.chat_template";

struct LiteTensors {
    file: File,
    /// The tensor that was read last, as f32: it has scales apart from its codes, so its rows have no place of their own.
    last: RefCell<(String, Vec<u8>)>,
}

impl Tensors for LiteTensors {
    fn names(&self) -> Vec<String> {
        self.file.tensors().iter().map(|t| t.name().to_string()).collect()
    }

    /// Everything becomes f32.
    fn find(&self, name: &str) -> Result<Option<StoredWeight>> {
        Ok(self.file.find(name).map(|t| StoredWeight { shape: t.shape(), format: Format::F32 }))
    }

    fn read_at(&self, name: &str, at: u64, into: &mut [u8]) -> Result<()> {
        let none = || Error::Checkpoint(format!("{}: there is no tensor `{name}`", self.origin()));
        let tensor = self.file.find(name).ok_or_else(none)?;
        check_range(&self.origin(), name, at, into.len(), 4 * tensor.elements() as u64)?;
        let mut last = self.last.borrow_mut();
        if last.0 != name {
            let x = self.file.read_f32(tensor)?;
            *last = (name.to_string(), x.iter().flat_map(|x| x.to_le_bytes()).collect());
        }
        into.copy_from_slice(&last.1[at as usize..][..into.len()]);
        Ok(())
    }

    fn origin(&self) -> String {
        self.file.name().to_string()
    }
}

pub(super) fn open(path: &Path, given: Option<Tokenizer>) -> Result<ModelFile> {
    let file = File::open(path)?;
    let said = |key: &str| file.metadata().iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
    let bad = |what: String| Error::Checkpoint(format!("{}: {what}", file.name()));
    let missing = |key: &str| bad(format!("metadata has no line {key}=, so it is not known what model this is"));
    let model: ModelConfig = serde_json::from_str(said(MODEL).ok_or_else(|| missing(MODEL))?)
        .map_err(|e| bad(format!("{MODEL} is no model of this program: {e}")))?;
    let read = || match said(TOKENIZER) {
        Some(json) => Tokenizer::from_json(&format!("{}: {TOKENIZER}", file.name()), json.to_owned()),
        None => Err(missing(TOKENIZER)),
    };
    let roles: Option<Roles> = said(ROLES)
        .map(|json| serde_json::from_str(json).map_err(|e| bad(format!("{ROLES} is not what tokens mean: {e}"))))
        .transpose()?;
    let read = || -> Result<Tokenizer> {
        let mut tokenizer = read()?;
        let named = |e| bad(format!("{ROLES}: {e}"));
        roles.map_or(Ok(()), |roles| tokenizer.set_roles(roles)).map_err(named)?;
        Ok(tokenizer)
    };
    let tokenizer = given.map_or_else(read, Ok)?;
    let template: Option<String> = said(TEMPLATE).and_then(|json| serde_json::from_str(json).ok());
    let (config, table) = own::checked(file.name(), Config { model, ..Config::default() }, &tokenizer)?;
    let tensors = LiteTensors { file, last: RefCell::default() };
    let (weights, notes) = LinkedWeights::new(tensors, table, |_| false)?;
    Ok(ModelFile {
        config,
        chat_template: template.or(tokenizer.chat_template().map(str::to_owned)),
        tokenizer,
        weights: Box::new(weights),
        origin: path.to_path_buf(),
        format: FileFormat::GgufLite,
        notes,
    })
}
