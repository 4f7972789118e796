#!/usr/bin/env python3
"""Golden values for the gpt model, computed by PyTorch (any 2.x, CPU) and committed beside this script.

    pip install torch safetensors && python tests/golden/make_golden.py

Writes layernorm-gelu-learned.safetensors and rmsnorm-swiglu-rope-gqa.safetensors. Each holds, in float32:
  weights/NAME, grads/NAME   parameters and d(loss)/d(parameter) on the batch
  tokens, targets            int32 [B, T]; target -1 is masked
  logits                     [B, T, V] with the initial weights
  loss                       token-mean cross entropy of the batch
  losses                     ten losses of ten AdamW steps on the same batch (before each update): lr 1e-3, betas 0.9 / 0.95, eps 1e-8,
                             decay 0.1 on tensors of two or more axes, gradients clipped to global norm 1
The forward pass is written out with plain tensor operations in float64 and rounded once at the end.
"""
import math
import os
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
torch.manual_seed(1234)
B, T, V, LAYERS, WIDTH, HEADS = 3, 16, 61, 2, 32, 4
D = WIDTH // HEADS


def parameters(kv_heads, ff, gated, biases, learned, tied, norm_bias):
    p = {}

    def matrix(name, *shape):
        p[name] = torch.randn(*shape) * (0.3 / math.sqrt(shape[-1]) * 3)

    def vector(name, n, base):
        p[name] = base + 0.1 * torch.randn(n)

    def linear(name, out, inp, bias):
        matrix(name + ".weight", out, inp)
        if bias:
            vector(name + ".bias", out, 0.0)

    def norm(name):
        vector(name + ".weight", WIDTH, 1.0)
        if norm_bias:
            vector(name + ".bias", WIDTH, 0.0)

    matrix("model.embed_tokens.weight", V, WIDTH)
    if learned:
        matrix("model.embed_positions.weight", T, WIDTH)
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        norm(at + "input_layernorm")
        linear(at + "self_attn.q_proj", HEADS * D, WIDTH, biases)
        linear(at + "self_attn.k_proj", kv_heads * D, WIDTH, biases)
        linear(at + "self_attn.v_proj", kv_heads * D, WIDTH, biases)
        linear(at + "self_attn.o_proj", WIDTH, HEADS * D, biases)
        norm(at + "post_attention_layernorm")
        if gated:
            linear(at + "mlp.gate_proj", ff, WIDTH, biases)
        linear(at + "mlp.up_proj", ff, WIDTH, biases)
        linear(at + "mlp.down_proj", WIDTH, ff, biases)
    norm("model.norm")
    if not tied:
        linear("lm_head", V, WIDTH, False)
    return {k: v.double().requires_grad_() for k, v in p.items()}


def linear(p, name, x):
    y = x @ p[name + ".weight"].T
    return y + p[name + ".bias"] if name + ".bias" in p else y


def norm(p, name, x, kind, eps):
    if kind == "layernorm":
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + eps)
    else:
        x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
    x = x * p[name + ".weight"]
    return x + p[name + ".bias"] if name + ".bias" in p else x


def rope(x):  # [B, T, H, D], half-split pairs (k, k + D/2), base 10000
    k = torch.arange(D // 2, dtype=torch.float64)
    angle = torch.arange(T, dtype=torch.float64)[:, None] * 10000.0 ** (-2 * k / D)
    c, s = angle.cos()[None, :, None, :], angle.sin()[None, :, None, :]
    a, b = x[..., : D // 2], x[..., D // 2 :]
    return torch.cat([a * c - b * s, b * c + a * s], -1)


def forward(p, tokens, kind, kv_heads, gated, tied, eps):
    x = p["model.embed_tokens.weight"][tokens]
    if "model.embed_positions.weight" in p:
        x = x + p["model.embed_positions.weight"][:T]
    mask = torch.full((T, T), -math.inf, dtype=torch.float64).triu(1)
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        h = norm(p, at + "input_layernorm", x, kind, eps)
        q = linear(p, at + "self_attn.q_proj", h).view(B, T, HEADS, D)
        k = linear(p, at + "self_attn.k_proj", h).view(B, T, kv_heads, D)
        v = linear(p, at + "self_attn.v_proj", h).view(B, T, kv_heads, D)
        if gated:
            q, k = rope(q), rope(k)
        k, v = (z.repeat_interleave(HEADS // kv_heads, 2) for z in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D) + mask
        o = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).reshape(B, T, WIDTH)
        x = x + linear(p, at + "self_attn.o_proj", o)
        h = norm(p, at + "post_attention_layernorm", x, kind, eps)
        up = linear(p, at + "mlp.up_proj", h)
        act = F.silu(linear(p, at + "mlp.gate_proj", h)) * up if gated else F.gelu(up, approximate="tanh")
        x = x + linear(p, at + "mlp.down_proj", act)
    x = norm(p, "model.norm", x, kind, eps)
    return x @ p["model.embed_tokens.weight" if tied else "lm_head.weight"].T


def loss_of(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), ignore_index=-1)


def make(name, kind, kv_heads, ff, gated, biases, learned, tied, eps):
    p = parameters(kv_heads, ff, gated, biases, learned, tied, norm_bias=kind == "layernorm")
    tokens, targets = torch.randint(0, V, (B, T)), torch.randint(0, V, (B, T))
    targets[1, 9:] = -1
    targets[2, 0] = -1
    run = lambda: forward(p, tokens, kind, kv_heads, gated, tied, eps)
    logits = run()
    loss = loss_of(logits, targets)
    loss.backward()
    out = {"tokens": tokens.int(), "targets": targets.int(), "logits": logits.detach().float(), "loss": loss.detach().float()[None]}
    for k, v in p.items():
        out["weights/" + k] = v.detach().float()
        out["grads/" + k] = v.grad.float()
    groups = [
        {"params": [v for v in p.values() if v.dim() >= 2], "weight_decay": 0.1},
        {"params": [v for v in p.values() if v.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = loss_of(run(), targets)
        loss.backward()
        losses.append(loss.item())
        total = torch.sqrt(sum((v.grad**2).sum() for v in p.values()))
        scale = min(1.0, 1.0 / (total.item() + 1e-12))
        for v in p.values():
            v.grad *= scale
        optimizer.step()
    out["losses"] = torch.tensor(losses, dtype=torch.float32)
    save_file({k: v.contiguous() for k, v in out.items()}, os.path.join(HERE, name + ".safetensors"))
    print(name, "loss", losses[0], "->", losses[-1], "parameters", sum(v.numel() for v in p.values()))


make("layernorm-gelu-learned", "layernorm", HEADS, 96, False, True, True, True, 1e-5)
make("rmsnorm-swiglu-rope-gqa", "rmsnorm", 2, 80, True, False, False, False, 1e-6)
