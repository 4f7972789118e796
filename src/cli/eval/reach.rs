//! How far back the parts of a model can look, so that a recall is credited to the part that can have made it.

use crate::config::{Fusion, LocalMode, ModelConfig, Recurrence};
use serde::Serialize;

/// In tokens from the one that predicts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reach {
    /// Through attention: layer by layer, `layers (window - 1)` where it has a window.
    pub attention: Option<u64>,
    /// Through one reading of the episodic memory, where there is one: its slots times the tokens of each.
    pub memory: Option<u64>,
    /// Whether a recurrence carries a state, which has no limit but its forgetting.
    pub recurrence: bool,
    /// Where nothing reaches farther: models that do not carry a state from segment to segment see their newest tokens only.
    pub limit: Option<u64>,
    #[serde(skip)]
    about: String,
}

impl Reach {
    /// `carries`: whether the model reads a text of any length with a state (`Session::carries`).
    pub fn of(config: &ModelConfig, carries: bool) -> Self {
        let (context, mut parts) = (config.context() as u64, vec![]);
        let mut reach = match config {
            ModelConfig::Gpt(_) | ModelConfig::Llama(_) => {
                Reach { attention: None, memory: None, recurrence: false, limit: None, about: String::new() }
            }
            ModelConfig::Coeus(c) => {
                // Blocks that do not overlap hand nothing on from layer to layer.
                let hops = if c.local_mode == LocalMode::BandBlocks { c.layers as u64 } else { 1 };
                let attention = (c.fusion != Fusion::RecurrentOnly).then(|| hops * (c.window as u64 - 1));
                let memory = c.use_episodic_mem.then(|| c.mem_capacity as u64 * c.mem_update_freq as u64);
                let recurrence = c.fusion != Fusion::LocalOnly;
                if let Some(far) = attention {
                    parts.push(format!("attention reaches {hops} x ({} - 1) = {far} tokens back", c.window));
                }
                if recurrence {
                    parts.push(match c.recurrence {
                        Recurrence::Scan => "a scan carries one number a channel".into(),
                        _ => "a recurrence carries a state for each head".into(),
                    });
                }
                if let Some(far) = memory {
                    parts.push(format!("the memory covers {} x {} = {far} tokens", c.mem_capacity, c.mem_update_freq));
                }
                // Every layer may read its memory.
                let limit = attention.unwrap_or(0) + c.layers as u64 * memory.unwrap_or(0);
                Reach {
                    attention,
                    memory,
                    recurrence,
                    limit: Some(limit).filter(|_| !recurrence),
                    about: String::new(),
                }
            }
        };
        if !carries {
            parts.push(format!("the model sees the newest {context} tokens"));
            reach.limit = Some(reach.limit.unwrap_or(u64::MAX).min(context - 1));
        }
        reach.about = parts.join("; ");
        reach
    }

    /// What a recall over this many tokens cannot show.
    pub fn note(&self, tokens: usize) -> Option<&'static str> {
        if self.limit.is_some_and(|far| tokens as u64 > far) {
            return Some("out of reach: chance");
        }
        let covers = |part: Option<u64>| part.is_some_and(|far| tokens as u64 <= far);
        if covers(self.attention) {
            return (self.recurrence || self.memory.is_some()).then_some("within attention: no clean control");
        }
        (self.memory.is_some() && !covers(self.memory)).then_some("beyond the memory")
    }
}

impl std::fmt::Display for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.about)
    }
}
