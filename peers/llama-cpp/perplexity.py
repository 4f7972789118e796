#!/usr/bin/env python3
"""Perplexity of a text as llama.cpp's `llama-perplexity` computes it, through llama-cpp-python (PyPI), to compare `lynx-gpu eval perplexity`:

    python peers/llama-cpp/perplexity.py MODEL.gguf TEXT [--ctx 512] [--chunks N] [--threads 2] [--cache f16]

The text is tokenized once, with BOS where the model wants it, and cut into chunks of --ctx tokens; what is left over is not read. Each
chunk is read from an empty cache, its first token replaced by BOS (where the model wants it), and the tokens after position ctx / 2 are
scored: ctx - 1 - ctx / 2 a chunk. Prints one JSON line; `error` is the standard error that llama.cpp prints. With --cache f32 llama.cpp's
flash attention is off, which rounds keys and values to F16 whatever they are kept as.
"""
import argparse
import ctypes
import json
import math
import pathlib
import time

import llama_cpp as llama
import numpy


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", choices=["f32", "f16"], default="f16")
    o = parser.parse_args()
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(o.model.encode(), llama.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {o.model}")
    p = llama.llama_context_default_params()
    p.n_ctx = p.n_batch = p.n_ubatch = o.ctx
    p.n_threads = p.n_threads_batch = o.threads
    p.type_k = p.type_v = {"f32": 0, "f16": 1}[o.cache]
    if o.cache == "f32":
        p.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama.llama_init_from_model(model, p)
    memory = llama.llama_get_memory(context)
    vocabulary = llama.llama_model_get_vocab(model)
    size = llama.llama_vocab_n_tokens(vocabulary)
    text = pathlib.Path(o.text).read_bytes().removesuffix(b"\n")  # as llama.cpp's -f does
    ids = (llama.llama_token * (len(text) + 8))()
    count = llama.llama_tokenize(vocabulary, text, len(text), ids, len(ids), True, False)
    if count < 2 * o.ctx:
        raise SystemExit(f"{count} tokens are fewer than two chunks of {o.ctx}")
    tokens = list(ids[:count])
    bos = llama.llama_vocab_bos(vocabulary) if llama.llama_vocab_get_add_bos(vocabulary) else None
    first, losses = o.ctx // 2, []
    chunks = min(count // o.ctx, o.chunks or count)
    batch = llama.llama_batch_init(o.ctx, 0, 1)
    begun = time.perf_counter()
    for chunk in range(chunks):
        part = tokens[chunk * o.ctx : (chunk + 1) * o.ctx]
        llama.llama_memory_clear(memory, True)
        batch.n_tokens = o.ctx
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, i >= first
        if bos is not None:
            batch.token[0] = bos
        if llama.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        rows = o.ctx - first
        pointer = ctypes.cast(llama.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
        logits = numpy.ctypeslib.as_array(pointer, (rows, size)).astype(numpy.float64)[:-1]
        most = logits.max(-1)
        total = most + numpy.log(numpy.exp(logits - most[:, None]).sum(-1))
        losses.extend(total - logits[numpy.arange(rows - 1), part[first + 1 :]])
    seconds = time.perf_counter() - begun
    mean = float(numpy.mean(losses))
    error = math.sqrt(max(float(numpy.mean(numpy.square(losses))) - mean * mean, 0.0) / (len(losses) - 1))
    print(json.dumps({
        "program": f"llama-cpp-python {llama.__version__}", "model": o.model, "text": o.text, "n_ctx": o.ctx, "chunks": chunks, "tokens": count,
        "scored": len(losses), "loss": mean, "perplexity": math.exp(mean), "error": math.exp(mean) * error, "cache": o.cache, "seconds": seconds,
    }))


main()
