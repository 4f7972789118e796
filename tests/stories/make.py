#!/usr/bin/env python3
"""Golden values of stories260K (karpathy/tinyllamas), committed beside this script. Needs torch (any 2.x, CPU) and safetensors:

    python tests/stories/make.py stories260K.bin

Reads greedy.json and writes logits.safetensors:
  tokens     int32 [40]       BOS and the first 39 tokens of the greedy text
  positions  int32 [16]       the first and the last eight
  logits     float32 [16, V]  after those positions
  argmax     int32 [40]       the most likely token after every position
The forward pass is written out with plain tensor operations in float64 and rounded once at the end. It also continues the prompt greedily
and stops with an error where it does not give greedy.json's tokens.

greedy.json is what llama2.c's `run` printed for the same file (run.c of commit bd182289, gcc -O2, no -ffast-math), its token ids printed too:

    run stories260K.bin -z tok512.bin -t 0 -n 200 -i "Once upon a time"

What that program does: the prompt is encoded with a leading space (SentencePiece's dummy prefix), BOS (1) stands before it and is not
printed, the space that follows BOS is not printed either, and -n counts every token after BOS, those of the prompt included. It stops
earlier where BOS is the likeliest token: here after 345 tokens (-n 512, the context). Ties go to the smaller id; none come near (the
closest race of the 345 is won by 0.0042). `ids` are all 345, `text` is what -n 200 prints, `whole` what -n 512 prints, and `encodings`
are prompts with what they become (without BOS).
"""
import json
import pathlib
import struct
import sys

import numpy
import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
LENGTH, ENDS = 40, 8


def read(path):
    """Header (seven int32) and the matrices of a legacy file, in its order, as float64."""
    raw = open(path, "rb").read()
    width, hidden, layers, heads, kv_heads, vocabulary, _context = struct.unpack("<7i", raw[:28])
    numbers, at = torch.from_numpy(numpy.frombuffer(raw, "<f4", offset=28).astype("float64")), 0
    size = width // heads

    def take(*shape):
        nonlocal at
        count = int(numpy.prod(shape))
        at += count
        return numbers[at - count : at].view(*shape)

    w = {"embedding": take(vocabulary, width), "norm_attention": take(layers, width)}
    w["q"], w["k"], w["v"] = (take(layers, n * size, width) for n in (heads, kv_heads, kv_heads))
    w["o"], w["norm_feed"] = take(layers, width, heads * size), take(layers, width)
    w["gate"], w["down"], w["up"] = take(layers, hidden, width), take(layers, width, hidden), take(layers, hidden, width)
    w["norm"] = take(width)
    assert vocabulary > 0, "the head is expected to be the embedding"
    return w, layers, heads, kv_heads, size


def norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


def rotate(x):
    """Pairs of neighbours, [T, heads, size]."""
    time, _, size = x.shape
    angle = torch.arange(time, dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None, :]
    return torch.view_as_real(torch.view_as_complex(x.reshape(time, -1, size // 2, 2)) * turn).reshape(x.shape)


def forward(model, tokens):
    w, layers, heads, kv_heads, size = model
    x, time = w["embedding"][torch.tensor(tokens)], len(tokens)
    hidden_from = torch.ones(time, time, dtype=torch.bool).triu(1)
    for i in range(layers):
        h = norm(x, w["norm_attention"][i])
        q, k, v = (h @ w[n][i].T for n in "qkv")
        q, k, v = rotate(q.view(time, heads, size)), rotate(k.view(time, kv_heads, size)), v.view(time, kv_heads, size)
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        scores = torch.einsum("thd,shd->hts", q, k) / size**0.5
        weights = scores.masked_fill(hidden_from, -torch.inf).softmax(-1)
        x = x + torch.einsum("hts,shd->thd", weights, v).reshape(time, -1) @ w["o"][i].T
        h = norm(x, w["norm_feed"][i])
        gate = h @ w["gate"][i].T
        x = x + (gate * torch.sigmoid(gate) * (h @ w["up"][i].T)) @ w["down"][i].T
    return norm(x, w["norm"]) @ w["embedding"].T


def main():
    model = read(sys.argv[1])
    golden = json.loads((HERE / "greedy.json").read_text())
    text = [1] + golden["ids"]
    tokens = text[:LENGTH]
    logits = forward(model, tokens)
    positions = list(range(ENDS)) + list(range(LENGTH - ENDS, LENGTH))
    integers = lambda values: torch.tensor(values, dtype=torch.int32)
    save_file({
        "tokens": integers(tokens), "positions": integers(positions), "argmax": logits.argmax(-1).to(torch.int32),
        "logits": logits[positions].to(torch.float32).contiguous(),
    }, HERE / "logits.safetensors")
    # One pass over the whole text: causal, so each position's likeliest token is what a step by step continuation takes.
    likeliest = forward(model, text).argmax(-1).tolist()
    first = golden["prompt_tokens"]
    assert likeliest[first:] == text[first + 1 :] + [1], "PyTorch's greedy text is another one"
    print(f"{len(golden['ids'])} tokens agree, the last one stops at BOS")


main()
