#!/usr/bin/env python3
"""Compares the vocabularies that this program writes for GGUF files with what llama.cpp makes of them.

    pip install gguf llama-cpp-python sentencepiece tokenizers transformers
    export LYNX_VOCABULARIES=$(mktemp -d)
    cargo test --test tokenizers vocabularies -- --ignored && python tests/tokenizers/llama_cpp.py

Every vocabulary is loaded in llama.cpp and encodes the texts that this program can encode; differences are printed, and make it fail unless
the texts are of those that the notes name: U+2581 in a text, and what Qwen's tokenizer.json normalizes.
"""
import glob
import json
import os
import sys

from make import llama_cpp

failed = 0
for path in sorted(glob.glob(os.path.join(os.environ["LYNX_VOCABULARIES"], "*.json"))):
    with open(path, encoding="utf-8") as f:
        v = json.load(f)
    texts = [c["text"] for c in v["cases"]]
    found = llama_cpp(v, texts)
    wrong = [(t, c["ids"], i) for t, c, i in zip(texts, v["cases"], found) if c["ids"] != i]
    real = [w for w in wrong if "▁" not in w[0] and not ("e\u0301" in w[0] and v["pre"] == "qwen2")]
    failed += len(real)
    print(f"{v['name']}: {len(texts)} texts, {len(wrong)} differ, {len(real)} of them not as noted")
    for w in real:
        print("  ", w)
sys.exit(failed > 0)
