//! Which tensors the models of other programs consist of, by the names those programs give them.

use super::links::{Link, Part, Table};
use crate::config::{GptConfig, LlamaConfig, Positions, RopeLayout};

/// A weight that a tensor of its own holds.
fn alone(stored: String, part: Part) -> Link {
    Link { stored, parts: vec![part], transposed: false }
}

fn part(ours: impl Into<String>, shape: &[usize]) -> Part {
    Part { ours: ours.into(), shape: shape.to_vec(), turned_heads: 0, gain: false }
}

/// The weights of a llama model, in the order of the graph.
pub(super) fn llama_parts(c: &LlamaConfig) -> Vec<Part> {
    let mut parts = vec![part("model.embed_tokens.weight", &[c.vocab_size, c.width])];
    let gain = |name: String| Part { gain: true, ..part(name, &[c.width]) };
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    for i in 0..c.layers {
        let name = |rest: &str| format!("model.layers.{i}.{rest}");
        parts.push(gain(name("input_layernorm.weight")));
        for (which, rows, columns, turned_heads, bias) in [
            ("q_proj", q, c.width, c.heads, c.qkv_bias),
            ("k_proj", kv, c.width, c.kv_heads, c.qkv_bias),
            ("v_proj", kv, c.width, 0, c.qkv_bias),
            ("o_proj", c.width, q, 0, c.output_bias),
        ] {
            let name = |kind: &str| name(&format!("self_attn.{which}.{kind}"));
            parts.push(Part { turned_heads, ..part(name("weight"), &[rows, columns]) });
            if bias {
                parts.push(Part { turned_heads, ..part(name("bias"), &[rows]) });
            }
        }
        parts.push(gain(name("post_attention_layernorm.weight")));
        if c.post_norms {
            parts.push(gain(name("pre_feedforward_layernorm.weight")));
        }
        for (which, rows, columns) in
            [("gate_proj", c.ff_width, c.width), ("up_proj", c.ff_width, c.width), ("down_proj", c.width, c.ff_width)]
        {
            parts.push(part(name(&format!("mlp.{which}.weight")), &[rows, columns]));
            if c.ff_bias {
                parts.push(part(name(&format!("mlp.{which}.bias")), &[rows]));
            }
        }
        if c.post_norms {
            parts.push(gain(name("post_feedforward_layernorm.weight")));
        }
    }
    parts.push(gain("model.norm.weight".into()));
    if !c.tied_head {
        parts.push(part("lm_head.weight", &[c.vocab_size, c.width]));
    }
    parts
}

/// On Hugging Face, whose names ours are. `prefix` stands before the names of the model without its head: `model.` or nothing.
pub(super) fn hf_llama(c: &LlamaConfig, prefix: &str, less_one: bool) -> Table {
    let stored = |ours: &str| match ours.strip_prefix("model.") {
        Some(rest) => format!("{prefix}{rest}"),
        None => ours.to_string(),
    };
    let links = llama_parts(c).into_iter().map(|part| alone(stored(&part.ours), part)).collect();
    Table { links, layout: RopeLayout::HalfSplit, less_one }
}

/// In GGUF. llama.cpp turns neighbouring dimensions in its `llama` models and halves in its others.
pub(super) fn gguf_llama(c: &LlamaConfig, layout: RopeLayout) -> Table {
    let links = llama_parts(c).into_iter().map(|part| alone(gguf_name(&part.ours, c.post_norms), part)).collect();
    Table { links, layout, less_one: false }
}

/// llama.cpp's name for a weight of ours.
fn gguf_name(ours: &str, post_norms: bool) -> String {
    let Some((layer, rest)) = ours.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return match ours {
            "model.embed_tokens.weight" => "token_embd.weight".into(),
            "model.embed_positions.weight" => "position_embd.weight".into(),
            "lm_head.weight" => "output.weight".into(),
            _ => ours.replace("model.norm.", "output_norm."),
        };
    };
    let (module, kind) = rest.rsplit_once('.').unwrap_or((rest, "weight"));
    let name = match module {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "post_attention_layernorm" if post_norms => "post_attention_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        other => other,
    };
    format!("blk.{layer}.{name}.{kind}")
}

/// In files of llama2.c, by the names of Meta's checkpoints.
pub(super) fn llama2c(c: &LlamaConfig) -> Table {
    let links = llama_parts(c).into_iter().map(|part| alone(llama2c_name(&part.ours), part)).collect();
    Table { links, layout: RopeLayout::Interleaved, less_one: false }
}

fn llama2c_name(ours: &str) -> String {
    let Some((layer, rest)) = ours.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return match ours {
            "model.embed_tokens.weight" => "tok_embeddings.weight".into(),
            "lm_head.weight" => "output.weight".into(),
            _ => "norm.weight".into(),
        };
    };
    let name = match rest.trim_end_matches(".weight") {
        "input_layernorm" => "attention_norm",
        "self_attn.q_proj" => "attention.wq",
        "self_attn.k_proj" => "attention.wk",
        "self_attn.v_proj" => "attention.wv",
        "self_attn.o_proj" => "attention.wo",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "feed_forward.w1",
        "mlp.down_proj" => "feed_forward.w2",
        "mlp.up_proj" => "feed_forward.w3",
        other => other,
    };
    format!("layers.{layer}.{name}.weight")
}

/// What another program calls the parts of GPT-2.
struct Gpt2Names {
    tokens: &'static str,
    positions: &'static str,
    layer: &'static str,
    /// Norm before attention, the fused projection, the output projection, norm before the feed-forward network, its two matrices.
    modules: [&'static str; 6],
    last_norm: &'static str,
    head: &'static str,
    transposed: bool,
}

/// GPT-2 on Hugging Face; `prefix` is `transformer.` or nothing.
pub(super) fn hf_gpt2(c: &GptConfig, prefix: &str) -> Table {
    gpt2(
        c,
        prefix,
        &Gpt2Names {
            tokens: "wte",
            positions: "wpe",
            layer: "h",
            modules: ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"],
            last_norm: "ln_f",
            head: "lm_head",
            transposed: true,
        },
    )
}

/// GPT-2 in GGUF.
pub(super) fn gguf_gpt2(c: &GptConfig) -> Table {
    gpt2(
        c,
        "",
        &Gpt2Names {
            tokens: "token_embd",
            positions: "position_embd",
            layer: "blk",
            modules: ["attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"],
            last_norm: "output_norm",
            head: "output",
            transposed: false,
        },
    )
}

fn gpt2(c: &GptConfig, prefix: &str, names: &Gpt2Names) -> Table {
    let (d, f) = (c.width, c.ff_width);
    let kv = c.kv_heads * c.head_dim();
    let mut links = vec![
        alone(format!("{prefix}{}.weight", names.tokens), part("model.embed_tokens.weight", &[c.vocab_size, d])),
        alone(format!("{prefix}{}.weight", names.positions), part("model.embed_positions.weight", &[c.context, d])),
    ];
    let norm = |links: &mut Vec<Link>, stored: String, ours: String| {
        for kind in ["weight", "bias"] {
            links.push(alone(format!("{stored}.{kind}"), part(format!("{ours}.{kind}"), &[d])));
        }
    };
    for i in 0..c.layers {
        let ours = |module: &str| format!("model.layers.{i}.{module}");
        let stored = |module: &str| format!("{prefix}{}.{i}.{module}", names.layer);
        let linear = |links: &mut Vec<Link>, module: &str, columns: usize, outputs: &[(&str, usize)]| {
            for kind in ["weight", "bias"] {
                let shape = |rows: usize| if kind == "weight" { vec![rows, columns] } else { vec![rows] };
                let parts = outputs.iter().map(|(name, rows)| part(format!("{}.{kind}", ours(name)), &shape(*rows)));
                links.push(Link {
                    stored: format!("{}.{kind}", stored(module)),
                    parts: parts.collect(),
                    transposed: names.transposed && kind == "weight",
                });
            }
        };
        let [before, fused, output, between, up, down] = names.modules;
        norm(&mut links, stored(before), ours("input_layernorm"));
        let projections = [("self_attn.q_proj", d), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)];
        linear(&mut links, fused, d, &projections);
        linear(&mut links, output, d, &[("self_attn.o_proj", d)]);
        norm(&mut links, stored(between), ours("post_attention_layernorm"));
        linear(&mut links, up, d, &[("mlp.up_proj", f)]);
        linear(&mut links, down, f, &[("mlp.down_proj", d)]);
    }
    norm(&mut links, format!("{prefix}{}", names.last_norm), "model.norm".into());
    if !c.tied_head {
        links.push(alone(format!("{}.weight", names.head), part("lm_head.weight", &[c.vocab_size, d])));
    }
    // Nothing of it turns, so the layout stands for nothing.
    Table { links, layout: RopeLayout::HalfSplit, less_one: false }
}

/// Every weight of a gpt model by its own name, as our checkpoints have them.
pub(super) fn own_gpt(c: &GptConfig) -> Table {
    let mut parts = vec![part("model.embed_tokens.weight", &[c.vocab_size, c.width])];
    if c.positions == Positions::Learned {
        parts.push(part("model.embed_positions.weight", &[c.context, c.width]));
    }
    let turns = c.positions == Positions::Rope;
    let kv = c.kv_heads * c.head_dim();
    let vector = |parts: &mut Vec<Part>, name: String, size: usize, heads: usize| {
        parts.push(Part { turned_heads: heads, ..part(name, &[size]) });
    };
    let norm = |parts: &mut Vec<Part>, name: String| {
        let rms = c.norm == crate::config::Norm::Rmsnorm;
        parts.push(Part { gain: rms, ..part(format!("{name}.weight"), &[c.width]) });
        if c.norm_bias {
            vector(parts, format!("{name}.bias"), c.width, 0);
        }
    };
    for i in 0..c.layers {
        let name = |rest: &str| format!("model.layers.{i}.{rest}");
        norm(&mut parts, name("input_layernorm"));
        for (which, rows, heads) in
            [("q_proj", c.width, c.heads), ("k_proj", kv, c.kv_heads), ("v_proj", kv, 0), ("o_proj", c.width, 0)]
        {
            let heads = if turns { heads } else { 0 };
            let name = |kind: &str| name(&format!("self_attn.{which}.{kind}"));
            parts.push(Part { turned_heads: heads, ..part(name("weight"), &[rows, c.width]) });
            if c.attention_bias {
                vector(&mut parts, name("bias"), rows, heads);
            }
        }
        norm(&mut parts, name("post_attention_layernorm"));
        let gate = c.ff_kind.is_gated().then_some(("gate_proj", c.ff_width, c.width));
        for (which, rows, columns) in
            gate.into_iter().chain([("up_proj", c.ff_width, c.width), ("down_proj", c.width, c.ff_width)])
        {
            parts.push(part(name(&format!("mlp.{which}.weight")), &[rows, columns]));
            if c.ff_bias {
                vector(&mut parts, name(&format!("mlp.{which}.bias")), rows, 0);
            }
        }
    }
    norm(&mut parts, "model.norm".into());
    if !c.tied_head {
        parts.push(part("lm_head.weight", &[c.vocab_size, c.width]));
    }
    let links = parts.into_iter().map(|part| alone(part.ours.clone(), part)).collect();
    Table { links, layout: c.rope_layout, less_one: false }
}

/// Every weight of a llama model by its own name.
pub(super) fn own_llama(c: &LlamaConfig) -> Table {
    Table { layout: c.rope_layout, ..hf_llama(c, "model.", c.norm_plus_one) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FeedForward, ModelConfig, Norm};
    use crate::models::setup;
    use std::collections::BTreeMap;

    fn asked(table: &Table) -> BTreeMap<String, Vec<usize>> {
        table.links.iter().flat_map(|l| &l.parts).map(|p| (p.ours.clone(), p.shape.clone())).collect()
    }

    fn parameters(config: ModelConfig) -> BTreeMap<String, Vec<usize>> {
        let model = setup::model(&config).unwrap();
        model.parameters().unwrap().into_iter().map(|p| (p.name, p.shape)).collect()
    }

    #[test]
    fn the_tables_ask_for_exactly_the_weights_of_the_graph() {
        let mut plain = LlamaConfig { vocab_size: 11, heads: 4, kv_heads: 2, ..LlamaConfig::default() };
        plain.resolve();
        let all = LlamaConfig {
            post_norms: true,
            qkv_bias: true,
            output_bias: true,
            ff_bias: true,
            tied_head: false,
            head_dim: 8,
            rope_dims: 8,
            ..plain.clone()
        };
        for c in [plain, all] {
            let expected = parameters(ModelConfig::Llama(c.clone()));
            assert_eq!(asked(&hf_llama(&c, "model.", false)), expected);
            assert_eq!(asked(&gguf_llama(&c, RopeLayout::Interleaved)), expected);
            assert_eq!(asked(&own_llama(&c)), expected);
        }
        let mut c = GptConfig {
            vocab_size: 11,
            positions: Positions::Learned,
            attention_bias: true,
            tied_head: false,
            ..GptConfig::default()
        };
        c.resolve();
        let expected = parameters(ModelConfig::Gpt(c.clone()));
        assert_eq!(asked(&hf_gpt2(&c, "")), expected);
        assert_eq!(asked(&gguf_gpt2(&c)), expected);
        let mut shaped = GptConfig {
            norm: Norm::Rmsnorm,
            ff_kind: FeedForward::Swiglu,
            ff_bias: false,
            vocab_size: 11,
            kv_heads: 2,
            ..GptConfig::default()
        };
        shaped.resolve();
        for c in [c, shaped] {
            assert_eq!(asked(&own_gpt(&c)), parameters(ModelConfig::Gpt(c)));
        }
    }

    #[test]
    fn names_are_those_of_the_other_programs() {
        let mut c =
            LlamaConfig { vocab_size: 11, layers: 1, qkv_bias: true, post_norms: true, ..LlamaConfig::default() };
        c.resolve();
        let stored: Vec<String> = gguf_llama(&c, RopeLayout::HalfSplit).links.into_iter().map(|l| l.stored).collect();
        assert_eq!(
            stored,
            [
                "token_embd.weight",
                "blk.0.attn_norm.weight",
                "blk.0.attn_q.weight",
                "blk.0.attn_q.bias",
                "blk.0.attn_k.weight",
                "blk.0.attn_k.bias",
                "blk.0.attn_v.weight",
                "blk.0.attn_v.bias",
                "blk.0.attn_output.weight",
                "blk.0.post_attention_norm.weight",
                "blk.0.ffn_norm.weight",
                "blk.0.ffn_gate.weight",
                "blk.0.ffn_up.weight",
                "blk.0.ffn_down.weight",
                "blk.0.post_ffw_norm.weight",
                "output_norm.weight",
            ]
        );
        let mut c = GptConfig { vocab_size: 11, layers: 1, ..GptConfig::default() };
        c.resolve();
        let table = hf_gpt2(&c, "transformer.");
        let fused = table.links.iter().find(|l| l.stored == "transformer.h.0.attn.c_attn.weight").unwrap();
        assert_eq!(fused.shape(), [64, 192]);
        assert!(fused.transposed && fused.parts[2].ours == "model.layers.0.self_attn.v_proj.weight");
    }
}
