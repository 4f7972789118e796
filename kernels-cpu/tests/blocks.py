"""Prints the tables of kernels-cpu/tests/blocks.rs with the `gguf` package (PyPI): python kernels-cpu/tests/blocks.py

Both sides make the same blocks with the same generator and reduce the results to a number that depends on every bit and its place.
"""
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def random(seed, first, n):
    return mix((np.arange(first + 1, first + 1 + n, dtype=np.uint64)) * GOLDEN + np.uint64(seed))


def digest(values, first=0):
    place = np.arange(first, first + len(values), dtype=np.uint64) * GOLDEN
    return np.sum(mix(values.astype(np.uint64) ^ place), dtype=np.uint64)


def dequantised(kind, scale_at):
    """One block for each of the 65,536 f16 scales; the other bytes are random."""
    _, size = GGML_QUANT_SIZES[kind]
    words = -(-size // 8)
    total = np.uint64(0)
    chunk = 4096
    for first in range(0, 65536, chunk):
        blocks = random(int(kind), first * words, chunk * words).view(np.uint8).reshape(chunk, words * 8)[:, :size].copy()
        blocks[:, scale_at : scale_at + 2] = np.arange(first, first + chunk, dtype=np.uint16).view(np.uint8).reshape(chunk, 2)
        x = dequantize(blocks, kind).astype(np.float32)
        bits = np.where(np.isnan(x), np.uint32(0x7FC00000), x.view(np.uint32)).ravel()
        total += digest(bits, first * x.shape[1])
    return total


def numbers(blocks):
    """Blocks of 32 of many sizes; every 16th is zero, and the next one has halves, whose rounding is a matter of ties."""
    x = (random(1, 0, blocks * 32).astype(np.uint32) >> np.uint32(8)).astype(np.int32) - 2**23
    x = (x.astype(np.float32) * np.float32(2.0**-23)).reshape(blocks, 32)
    x *= np.exp2(np.arange(blocks) % 15 - 10.0).astype(np.float32)[:, None]
    x[0::16] = 0
    x[1::16] = ((np.arange(32) % 17).astype(np.float32) - 8) / 2
    return x


with np.errstate(all="ignore"):
    print("dequantised:")
    scale_at = {T.Q2_K: 80, T.Q3_K: 108, T.Q6_K: 208}
    for kind in [T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K]:
        print(f"    {kind.name}, {scale_at.get(kind, 0)}, {dequantised(kind, scale_at.get(kind, 0)):#018x}")
    print("quantised:")
    for kind in [T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]:
        print(f"    {kind.name}, {digest(np.ascontiguousarray(quantize(numbers(4096), kind)).view(np.uint8).ravel()):#018x}")
