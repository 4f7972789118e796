#!/usr/bin/env python3
"""Makes the models of this folder: tiny, with random weights, written by `transformers`, and the logits it gives for them.

    python tests/model_files/make.py        (torch, transformers, tokenizers, safetensors)

`logits.safetensors` has for every model `NAME.ids` (the prompt) and `NAME.logits` [rows, vocabulary], the logits after every
STRIDE-th token. A folder with `like.json` shares weights and tokenizer with another model and has a config.json of its own.
"""
import json
import pathlib
import shutil

import tokenizers
import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
STRIDE = 5
TEXT = "the cat sat on the mat and the dog sat on the log. " * 4 + "One day, in the old house, there was a small light."


def byte_level():
    t = tokenizers.Tokenizer(tokenizers.models.BPE())
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=288, special_tokens=["<|endoftext|>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    t.train_from_iterator([TEXT], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def sentence_piece():
    """What the tokenizer of Llama 2 becomes on Hugging Face: BPE over characters with a fall-back to bytes."""
    t = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    space = "\u2581"
    t.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend(space), tokenizers.normalizers.Replace(" ", space)]
    )
    specials = ["<unk>", "<s>", "</s>"]
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.normalizer = t.normalizer
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(f"(?={space})"), "isolated")
    trained.train_from_iterator(
        [TEXT], tokenizers.trainers.BpeTrainer(vocab_size=56, show_progress=False)
    )
    inner = json.loads(trained.to_str())["model"]
    pieces = sorted(inner["vocab"], key=inner["vocab"].get)
    tokens = specials + [f"<0x{b:02X}>" for b in range(256)] + pieces
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in inner["merges"]]
    t.model = tokenizers.models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    t.decoder = tokenizers.decoders.Sequence([
        tokenizers.decoders.Replace(space, " "), tokenizers.decoders.ByteFallback(),
        tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(" ", 1, 0),
    ])
    t.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False) for s in specials])
    t.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=t, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True
    )


def randomised(model, seed):
    """Weights of a size at which every part of a layer matters, norms and biases too, on a grid that 16 bits hold."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=g) * (0.5 if "emb" in name or "wte" in name else 1.5 / p.shape[-1] ** 0.5))
            else:
                # Gains of a Gemma norm are around 0, others around 1.
                gain = "norm" in name or "ln_" in name
                around = 1.0 if gain and name.endswith("weight") and "gemma" not in model.config.model_type else 0.0
                p.copy_(around + torch.round(torch.randn(p.shape, generator=g) * 0.2 * 256) / 256)
    return model


def logits(model, ids):
    with torch.no_grad():
        return model.float().eval()(torch.tensor([ids])).logits[0][STRIDE - 1 :: STRIDE].contiguous()


def load(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")


def slim(folder):
    """Without what nobody reads: the fixtures are in every clone."""
    text = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(text, ensure_ascii=False, separators=(",", ":")) + "\n")
    for name in folder.iterdir():
        if name.suffix == ".json" and name.name != "tokenizer.json":
            name.write_text(name.read_text().rstrip("\n") + "\n")


CHAT = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


def main():
    golden = {}
    bytes_, pieces = byte_level(), sentence_piece()
    common = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    T = transformers

    def make(name, model_class, config, tokenizer, dtype, **save):
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        model = randomised(model_class(config), seed=len(golden) + 1).to(dtype)
        model.save_pretrained(folder, **save)
        tokenizer.save_pretrained(folder)
        slim(folder)
        prompt(name, folder, tokenizer)

    def prompt(name, folder, tokenizer):
        ids = tokenizer("One day the old cat sat on the small log.", add_special_tokens=False)["input_ids"][:25]
        golden[f"{name}.ids"] = torch.tensor(ids, dtype=torch.int32)
        golden[f"{name}.logits"] = logits(load(folder), ids)

    def variant(name, of, tokenizer, change):
        """`of` with another config.json."""
        folder, whole = HERE / name, HERE / f".{name}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(whole, ignore_errors=True)
        shutil.copytree(HERE / of, whole)
        config = json.loads((HERE / of / "config.json").read_text())
        change(config)
        folder.mkdir()
        for to in (folder, whole):
            (to / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / "like.json").write_text(json.dumps({"like": of}) + "\n")
        prompt(name, whole, tokenizer)
        shutil.rmtree(whole)

    p, b = len(pieces), len(bytes_)
    pieces.chat_template = CHAT
    make("llama", T.LlamaForCausalLM, T.LlamaConfig(vocab_size=p, rms_norm_eps=1e-5, **common), pieces, torch.float16, max_shard_size="20KB")
    pieces.chat_template = None
    make(
        "llama-biases", T.LlamaForCausalLM,
        T.LlamaConfig(vocab_size=b, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, **common), bytes_, torch.bfloat16,
    )
    make(
        "mistral", T.MistralForCausalLM,
        T.MistralConfig(vocab_size=p, sliding_window=6, head_dim=16, **common), pieces, torch.bfloat16,
    )
    make("qwen2", T.Qwen2ForCausalLM, T.Qwen2Config(vocab_size=b, tie_word_embeddings=True, **common), bytes_, torch.bfloat16)
    make("gemma", T.GemmaForCausalLM, T.GemmaConfig(vocab_size=p, head_dim=16, **common), pieces, torch.float16)
    make(
        "gemma2", T.Gemma2ForCausalLM,
        T.Gemma2Config(
            vocab_size=p, head_dim=16, sliding_window=6, query_pre_attn_scalar=24, attn_logit_softcapping=4.0,
            final_logit_softcapping=5.0, **{**common, "num_hidden_layers": 3},
        ),
        pieces, torch.bfloat16,
    )
    # More rows than the tokenizer has ids, as models that are padded for speed have.
    gpt2 = T.GPT2Config(vocab_size=b + 8, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    make("gpt2", T.GPT2LMHeadModel, gpt2, bytes_, torch.float32)

    def rope(**parameters):
        def change(config):
            config["rope_parameters"] = {"rope_theta": 10000.0, **parameters}
        return change

    def old_rope(config):
        """The keys of transformers 4."""
        del config["rope_parameters"]
        config["rope_theta"] = 500.0
        config["rope_scaling"] = {"type": "linear", "factor": 3.0}

    variant("llama-linear", "llama", pieces, old_rope)
    variant("llama-dynamic", "llama", pieces, rope(rope_type="dynamic", factor=2.0))
    variant("llama-yarn", "llama", pieces, rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16))
    variant(
        "llama-yarn-scaled", "llama", pieces,
        rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=8, beta_slow=2, mscale=0.7, mscale_all_dim=0.3),
    )
    variant(
        "llama-llama3", "llama", pieces,
        rope(rope_type="llama3", rope_theta=50.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=48),
    )
    # The scale that llama.cpp gives every Gemma 2 of this shape.
    variant("gemma2-plain", "gemma2", pieces, lambda c: c.update(query_pre_attn_scalar=16))
    variant("qwen2-windowed", "qwen2", bytes_, lambda c: c.update(use_sliding_window=True, sliding_window=6, max_window_layers=0, layer_types=["sliding_attention"] * 2))

    def late_windows(config):
        """As transformers 4 wrote it: which layers have the window follows from the number of those that have not."""
        config.update(use_sliding_window=True, sliding_window=6, max_window_layers=1)
        del config["layer_types"]

    variant("qwen2-late-windows", "qwen2", bytes_, late_windows)
    save_file(golden, HERE / "logits.safetensors")


main()
