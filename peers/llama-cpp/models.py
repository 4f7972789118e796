#!/usr/bin/env python3
"""The GGUF files that lynx-gpu and llama.cpp are compared on. Needs gguf, numpy and, to quantise, llama-cpp-python.

    python peers/llama-cpp/models.py big OUT.gguf               a llama of 134 M parameters with random weights, F32 (537 MB)
    python peers/llama-cpp/models.py stories MODEL.bin TOKENIZER.bin OUT.gguf
                                                                a legacy llama2.c file (karpathy/llama2.c) as GGUF F32
    python peers/llama-cpp/models.py quantise IN.gguf OUT.gguf f16|q8_0|q4_0

Quantising is llama.cpp's own, every matrix to the one type (`pure`); rows that are not whole blocks become F16, as llama.cpp has it.
The conversion of llama2.c files here shares no code with lynx-gpu's and serves to check it.
"""
import struct
import sys

import gguf
import numpy

FILE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 7}


def header(path, name, width, hidden, layers, heads, kv_heads, context, tokens, scores, types):
    w = gguf.GGUFWriter(path, "llama")
    w.add_name(name)
    w.add_context_length(context)
    w.add_embedding_length(width)
    w.add_block_count(layers)
    w.add_feed_forward_length(hidden)
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(width // heads)
    w.add_vocab_size(len(tokens))
    w.add_file_type(0)
    w.add_tokenizer_model("llama")
    w.add_token_list(tokens)
    w.add_token_scores(scores)
    w.add_token_types(types)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    return w


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def big(out):
    layers, width, hidden, heads, vocabulary, context = 12, 768, 2048, 12, 32000, 2048
    tokens = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{i:02X}>".encode() for i in range(256)]
    types = [2, 3, 3] + [6] * 256
    words = vocabulary - len(tokens)
    tokens += [f"\u2581w{i}".encode() for i in range(words)]
    types += [1] * words
    w = header(out, "random 134M", width, hidden, layers, heads, heads, context, tokens, [-float(i) for i in range(vocabulary)], types)
    random = numpy.random.default_rng(0)
    matrix = lambda name, *shape: w.add_tensor(name, random.standard_normal(shape, dtype=numpy.float32) * 0.02)
    ones = numpy.ones(width, numpy.float32)
    matrix("token_embd.weight", vocabulary, width)
    for i in range(layers):
        at = f"blk.{i}."
        w.add_tensor(at + "attn_norm.weight", ones)
        w.add_tensor(at + "ffn_norm.weight", ones)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{at}{name}.weight", width, width)
        matrix(at + "ffn_gate.weight", hidden, width)
        matrix(at + "ffn_up.weight", hidden, width)
        matrix(at + "ffn_down.weight", width, hidden)
    w.add_tensor("output_norm.weight", ones)
    matrix("output.weight", vocabulary, width)
    finish(w)


def pieces(path, vocabulary):
    """Tokens as SentencePiece spells them, scores and types of a llama2.c tokenizer file."""
    raw = open(path, "rb").read()
    tokens, scores, types, at = [], [], [], 4
    for i in range(vocabulary):
        score, length = struct.unpack_from("<fi", raw, at)
        piece = raw[at + 8 : at + 8 + length]
        at += 8 + length
        special = {0: (b"<unk>", 2), 1: (b"<s>", 3), 2: (b"</s>", 3)}.get(i)
        byte = 3 <= i < 259
        tokens.append(special[0] if special else piece if byte else piece.replace(b" ", "\u2581".encode()))
        types.append(special[1] if special else 6 if byte else 1)
        scores.append(score)
    return tokens, scores, types


def stories(model, tokenizer, out):
    raw = open(model, "rb").read()
    width, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack("<7i", raw[:28])
    numbers, at = numpy.frombuffer(raw, "<f4", offset=28), 0
    size = width // heads
    w = header(out, "stories", width, hidden, layers, heads, kv_heads, context, *pieces(tokenizer, vocabulary))

    def take(*shape):
        nonlocal at
        count = int(numpy.prod(shape))
        at += count
        return numbers[at - count : at].reshape(shape)

    w.add_tensor("token_embd.weight", take(vocabulary, width))
    # GGUF's llama rotates neighbouring pairs, as llama2.c does: rows keep their order.
    for name, rows, columns in (
        ("attn_norm", None, width), ("attn_q", heads * size, width), ("attn_k", kv_heads * size, width),
        ("attn_v", kv_heads * size, width), ("attn_output", width, heads * size), ("ffn_norm", None, width),
        ("ffn_gate", hidden, width), ("ffn_down", width, hidden), ("ffn_up", hidden, width),
    ):
        for i, part in enumerate(take(layers, columns) if rows is None else take(layers, rows, columns)):
            w.add_tensor(f"blk.{i}.{name}.weight", numpy.ascontiguousarray(part))
    w.add_tensor("output_norm.weight", take(width))
    assert vocabulary > 0, "the head is expected to be the embedding"
    finish(w)


def quantise(source, out, kind):
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    p = llama_cpp.llama_model_quantize_default_params()
    p.ftype, p.nthread, p.pure = FILE_TYPES[kind], 2, True
    if llama_cpp.llama_model_quantize(source.encode(), out.encode(), p):
        sys.exit(f"llama.cpp could not quantise {source} to {kind}")


if __name__ == "__main__":
    tasks = {"big": big, "stories": stories, "quantise": quantise}
    if len(sys.argv) < 3 or sys.argv[1] not in tasks:
        sys.exit(__doc__)
    tasks[sys.argv[1]](*sys.argv[2:])
