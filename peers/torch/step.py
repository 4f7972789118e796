#!/usr/bin/env python3
"""The same model in PyTorch, timed: what lynx-gpu's training step and evaluation are compared with.

    python peers/torch/step.py --config shakespeare-char --batch 8 --threads 2 [--task train|eval] [--precision f32|bf16]
                               [--mode eager|compile] [--device cpu|cuda] [--steps 10] [--warmup 3]

Reads width, heads, layers and context from configs/NAME.toml, so both programs time the same shapes: pre-norm blocks, GELU, no biases,
LayerNorm without bias, tied head, AdamW over everything, dropout 0, random tokens. bf16 is torch.autocast around the forward pass.
Prints one JSON line: the median, quartiles and best of tokens per second, and the loss of the last step.
"""
import argparse
import json
import pathlib
import statistics
import time
import tomllib

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def attention(self, x):
        batch, time_, width = x.shape
        split = lambda z: z.view(batch, time_, self.heads, width // self.heads).transpose(1, 2)
        q, k, v = map(split, self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.projection(y.transpose(1, 2).reshape(batch, time_, width))

    def forward(self, x):
        x = x + self.attention(self.norm_attention(x))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


class Gpt(nn.Module):
    def __init__(self, vocabulary, context, width, heads, layers):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens, targets):
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        logits = self.norm(self.blocks(x)) @ self.tokens.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="shakespeare-char")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--task", choices=["train", "eval"], default="train")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--clip", type=float, default=0.0, help="gradient clipping, which lynx-gpu's step always includes")
    parser.add_argument("--vocabulary", type=int, default=65)
    o = parser.parse_args()
    if o.threads:
        torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    path = pathlib.Path(__file__).resolve().parents[2] / "configs" / f"{o.config}.toml"
    model = tomllib.loads(path.read_text())["model"]
    context = model["context"]
    net = Gpt(o.vocabulary, context, model["width"], model["heads"], model["layers"]).to(o.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, foreach=True)
    call = torch.compile(net) if o.mode == "compile" else net
    wait = torch.cuda.synchronize if o.device == "cuda" else (lambda: None)
    autocast = lambda: torch.autocast(o.device, torch.bfloat16, enabled=o.precision == "bf16")

    def train(x, y):
        with autocast():
            loss = call(x, y)
        loss.backward()
        if o.clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), o.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def evaluate(x, y):
        with torch.no_grad(), autocast():
            return call(x, y)

    run, rates, loss = (train if o.task == "train" else evaluate), [], None
    for step in range(o.warmup + o.steps):
        x, y = (torch.randint(0, o.vocabulary, (o.batch, context), device=o.device) for _ in range(2))
        wait()
        begin = time.perf_counter()
        loss = run(x, y)
        wait()
        if step >= o.warmup:
            rates.append(o.batch * context / (time.perf_counter() - begin))
    quartiles = statistics.quantiles(rates, n=4) if len(rates) > 1 else [rates[0]] * 3
    print(json.dumps({
        "program": f"torch {torch.__version__} {o.mode}", "task": o.task, "config": o.config, "batch": o.batch, "precision": o.precision,
        "device": o.device, "threads": torch.get_num_threads(), "parameters": sum(p.numel() for p in net.parameters()),
        "tokens_per_s": statistics.median(rates), "quartiles": [quartiles[0], quartiles[2]], "best": max(rates), "loss": loss.item(),
    }))


main()
