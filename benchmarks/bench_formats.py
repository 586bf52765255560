"""NF4, MXFP4 and ggml's blocks beside bitsandbytes and gguf-py; float8 with scales beside torch.

The limits read 4 bytes and write 1 an element (encode) or the other way (decode); the codes of
4 bits are half of that byte.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import fastopt
from benchmarks.harness import Case, Contender, limit, peer
from fastopt.quantization import from_gguf, to_gguf

SIDE = 4096


def normal(rows: int) -> Any:
    return np.random.default_rng(0).standard_normal((rows, SIDE), dtype=np.float32)


def encode_nf4(threads: int) -> dict[str, Contender | None]:
    x, out = normal(SIDE), np.zeros((SIDE, SIDE), np.uint8)
    cases: dict[str, Contender | None] = {
        "fastopt": lambda: fastopt.quantize(x, "nf4", threads=threads),
        "limit": limit("copy4to1", x, out, threads=threads),
    }
    if (torch := peer("torch")) and (functional := peer("bitsandbytes.functional")):
        torch.set_num_threads(threads)
        t = torch.from_numpy(x)
        cases["bitsandbytes"] = lambda: functional.quantize_4bit(t, quant_type="nf4")
    return cases


def decode_nf4(threads: int) -> dict[str, Contender | None]:
    x = normal(SIDE)
    q, out, codes = fastopt.quantize(x, "nf4"), np.zeros_like(x), np.zeros(x.shape, np.uint8)
    cases: dict[str, Contender | None] = {
        "fastopt": lambda: q.dequantize(out, threads=threads),
        "limit": limit("copy1to4", codes, out.copy(), threads=threads),
    }
    if (torch := peer("torch")) and (functional := peer("bitsandbytes.functional")):
        torch.set_num_threads(threads)
        made, state = functional.quantize_4bit(torch.from_numpy(x), quant_type="nf4")
        cases["bitsandbytes"] = lambda: functional.dequantize_4bit(made, state)
    return cases


def encode_mxfp4(threads: int) -> dict[str, Contender | None]:
    x = normal(256)  # gguf-py takes 16 temporaries of this size
    cases: dict[str, Contender | None] = {
        "fastopt": lambda: fastopt.quantize(x, "mxfp4", threads=threads),
        "limit": limit("copy4to1", x, np.zeros(x.shape, np.uint8), threads=threads),
    }
    if gguf := peer("gguf"):
        kind = gguf.GGMLQuantizationType.MXFP4
        cases["gguf-py"] = lambda: gguf.quants.quantize(x, kind)
    return cases


def decode_mxfp4(threads: int) -> dict[str, Contender | None]:
    x = normal(256)
    q, out, codes = fastopt.quantize(x, "mxfp4"), np.zeros_like(x), np.zeros(x.shape, np.uint8)
    cases: dict[str, Contender | None] = {
        "fastopt": lambda: q.dequantize(out, threads=threads),
        "limit": limit("copy1to4", codes, out.copy(), threads=threads),
    }
    if gguf := peer("gguf"):
        kind = gguf.GGMLQuantizationType.MXFP4
        made = gguf.quants.quantize(x, kind)
        cases["gguf-py"] = lambda: gguf.quants.dequantize(made, kind)
    return cases


def encode_blocks(threads: int, kind: str) -> dict[str, Contender | None]:
    x = normal(1024)
    cases: dict[str, Contender | None] = {
        "fastopt": lambda: to_gguf(x, kind, threads=threads),
        "limit": limit("copy4to1", x, np.zeros(x.shape, np.uint8), threads=threads),
    }
    if gguf := peer("gguf"):
        code = gguf.GGMLQuantizationType[kind]
        cases["gguf-py"] = lambda: gguf.quants.quantize(x, code)
    return cases


def decode_blocks(threads: int, kind: str) -> dict[str, Contender | None]:
    """Blocks to codes and scales, and those to values (gguf-py goes to values at once)."""
    x = normal(1024)
    data, out, codes = to_gguf(x, kind), np.zeros_like(x), np.zeros(x.shape, np.uint8)
    cases: dict[str, Contender | None] = {
        "fastopt": lambda: from_gguf(data, kind, threads=threads).dequantize(out, threads=threads),
        "limit": limit("copy1to4", codes, out.copy(), threads=threads),
    }
    if gguf := peer("gguf"):
        code = gguf.GGMLQuantizationType[kind]
        cases["gguf-py"] = lambda: gguf.quants.dequantize(data, code)
    return cases


def float8(threads: int) -> dict[str, Contender | None]:
    x, out = normal(SIDE), np.zeros((SIDE, SIDE), np.uint8)
    cases: dict[str, Contender | None] = {
        "fastopt": lambda: fastopt.quantize(x, "float8_e4m3fn", axis=0, threads=threads),
        "limit": limit("copy4to1", x, out, threads=threads),
    }
    if torch := peer("torch"):
        torch.set_num_threads(threads)
        t = torch.from_numpy(x)

        def with_torch() -> object:
            scale = t.abs().amax(1, keepdim=True) / 448
            return (t / scale).to(torch.float8_e4m3fn)

        cases["torch"] = with_torch
    return cases


CASES = [
    Case(name, setup, threads, targets)
    for threads in (1, 2)
    for name, setup, targets in (
        ("float32 -> nf4 g64, 4096^2", encode_nf4, {"bitsandbytes": 100.0}),
        ("nf4 g64 -> float32, 4096^2", decode_nf4, {"bitsandbytes": 10.0, "limit": 0.9}),
        ("float32 -> mxfp4 g32, 256 x 4096", encode_mxfp4, {"gguf-py": 100.0}),
        ("mxfp4 g32 -> float32, 256 x 4096", decode_mxfp4, {"gguf-py": 10.0, "limit": 0.9}),
        *(
            (f"float32 -> ggml {kind}, 1024 x 4096", partial(encode_blocks, kind=kind), wanted)
            for kind in ("Q8_0", "Q4_0")
            for wanted in [{"gguf-py": 10.0, "limit": 0.8}]
        ),
        *(
            (f"ggml {kind} -> float32, 1024 x 4096", partial(decode_blocks, kind=kind), wanted)
            for kind in ("Q8_0", "Q4_0")
            for wanted in [{"gguf-py": 5.0}]
        ),
        ("float32 -> float8_e4m3fn a row, 4096^2", float8, {"torch": 1.0}),
    )
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_formats(case: Case, benchmark: Any) -> None:
    case.run(benchmark)
