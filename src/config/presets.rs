//! The files of `configs/`, built into the program so that a name works from any folder.

use super::document::closest;
use crate::error::{Error, Result};

/// A configuration that ships with the program.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    pub name: &'static str,
    pub toml: &'static str,
}

macro_rules! presets {
    ($($name:literal),+ $(,)?) => {
        &[$(Preset { name: $name, toml: include_str!(concat!("../../configs/", $name, ".toml")) }),+]
    };
}

/// Every preset; the first is what `train` runs when asked for nothing in particular.
pub const PRESETS: &[Preset] = presets![
    "minigpt",
    "minigpt-medium",
    "minigpt-large",
    "minigpt-llama",
    "shakespeare-char-cpu",
    "shakespeare-char-cpu-llama",
    "shakespeare-char",
    "coeus-v1-tiny",
    "coeus-v1-mini",
    "coeus-v1-nano",
    "coeus-v2-tiny",
    "coeus-v2-mini",
    "coeus-v2-nano",
    "coeus-v2.5-tiny",
    "coeus-v2.5-mini",
    "coeus-v2.5-nano",
    "coeus-v2.6-tiny",
    "coeus-v2.6-mini",
    "coeus-v2.6-nano",
    "coeus-v3.0-tiny",
    "coeus-v3.0-mini",
    "coeus-v3.0-nano",
    "coeus-v3.1-tiny",
    "coeus-v3.1-mini",
    "coeus-v3.1-nano",
    "coeus-nightly-v2.6",
    "coeus-nightly-v3.0",
    "coeus-nightly-v3.1"
];

pub(super) fn find(name: &str) -> Result<&'static Preset> {
    if let Some(preset) = PRESETS.iter().find(|preset| preset.name == name) {
        return Ok(preset);
    }
    let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
    let hint = match closest(name, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("presets: {}", names.join(", ")),
    };
    Err(Error::Config(format!("`{name}` is neither a file nor a preset; {hint}")))
}
