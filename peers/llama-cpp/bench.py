#!/usr/bin/env python3
"""llama.cpp's tokens per second on a GGUF file, as llama-bench measures them, through llama-cpp-python (PyPI):

    python peers/llama-cpp/bench.py MODEL.gguf [-p 512] [-n 128] [-r 5] [-t 2] [--cache f16]

ppN is a prompt of N tokens in one batch, tgN one token after another from an empty cache; only the last token's logits are computed.
Defaults are those of llama-bench: n_batch 2048, n_ubatch 512, flash attention where llama.cpp chooses it, cache in F16, memory-mapped file.
One JSON line: tokens per second of every repeat, the same per second of processor time (which tells something on a busy machine too when
-t is 1), and the peak resident memory of the process (VmHWM, Python's own included).
"""
import argparse
import json
import time

import llama_cpp as llama

CACHES = {"f32": 0, "f16": 1, "q8_0": 8}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("-p", type=int, default=512)
    parser.add_argument("-n", type=int, default=128)
    parser.add_argument("-r", type=int, default=5)
    parser.add_argument("-t", type=int, default=2)
    parser.add_argument("--cache", choices=CACHES, default="f16")
    o = parser.parse_args()
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(o.model.encode(), llama.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {o.model}")
    p = llama.llama_context_default_params()
    p.n_ctx, p.n_batch, p.n_ubatch, p.n_threads, p.n_threads_batch = max(o.p, o.n), 2048, 512, o.t, o.t
    p.type_k = p.type_v = CACHES[o.cache]
    context = llama.llama_init_from_model(model, p)
    if not context:
        raise SystemExit(f"llama.cpp makes no context of {p.n_ctx} tokens for {o.model}")
    memory = llama.llama_get_memory(context)
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    alive = []

    def batch(ids):
        """Made before the clock runs, so that little of Python is in the measurement. A batch points at its tokens: they stay alive."""
        alive.append((llama.llama_token * len(ids))(*ids))
        return llama.llama_batch_get_one(alive[-1], len(ids))

    prompt = batch([i * 7 % vocabulary for i in range(o.p)])
    single = [batch([i * 11 % vocabulary]) for i in range(o.n)]

    def timed(batches):
        llama.llama_memory_clear(memory, True)
        begin = time.perf_counter(), time.process_time()
        for b in batches:
            if llama.llama_decode(context, b):
                raise SystemExit("llama_decode failed")
        llama.llama_synchronize(context)
        return time.perf_counter() - begin[0], time.process_time() - begin[1]

    timed([prompt])
    timed(single[:8])
    result = {"program": f"llama-cpp-python {llama.__version__}", "model": o.model, "threads": o.t, "cache": o.cache}
    for name, tokens, batches in ((f"pp{o.p}", o.p, [prompt]), (f"tg{o.n}", o.n, single)):
        times = [timed(batches) for _ in range(o.r)]
        result[name] = {"per_second": [tokens / wall for wall, _ in times], "per_cpu_second": [tokens / cpu for _, cpu in times]}
    status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    result["peak_bytes"] = int(status["VmHWM"].split()[0]) * 1024
    print(json.dumps(result))


main()
