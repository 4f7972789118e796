//! What single ids mean to whoever runs a model: where a text begins, where it ends, how a conversation is written.

/// Names of tokens that end a text or an answer in the tokenizers that people publish. A vocabulary that has one of them as a special
/// token means it so, whatever else it names as its end (the list that llama.cpp looks through).
pub(crate) const END_NAMES: [&str; 13] = [
    "<|endoftext|>",
    "</s>",
    "<|end_of_text|>",
    "<eos>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<EOT>",
    "_<EOT>",
    "<|endofturn|>",
    "<｜end▁of▁sentence｜>",
];

/// The part that ids play. Read from GGUF metadata, from the files beside a `tokenizer.json`, or from the special tokens' names.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Roles {
    /// The token before a text.
    pub bos: Option<u32>,
    /// Every token that ends a text or an answer; the end of a text first.
    pub eos: Vec<u32>,
    pub pad: Option<u32>,
    pub unk: Option<u32>,
    /// Whether a text begins with `bos`; `None` where nobody said so.
    pub add_bos: Option<bool>,
    /// Whether a text that is complete ends with `eos`.
    pub add_eos: bool,
    /// A Jinja template, see [`super::ChatTemplate`].
    #[serde(skip)]
    pub chat_template: Option<String>,
}

impl Roles {
    /// Adds `id` to the tokens that end an answer, once.
    pub(crate) fn ends_with(&mut self, id: u32) {
        if !self.eos.contains(&id) {
            self.eos.push(id);
        }
    }
}
