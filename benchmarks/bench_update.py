"""Optimiser steps against torch, optax and NumPy, and against a stream of the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import Case, Contender, limit, peer
from fastopt import optim

BIG = 10_000_000


def arrays(shapes: list[int], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(n, "f4") for n in shapes]


def ours(name: str, shapes: list[int], threads: int | None = None, **options: Any) -> Contender:
    opt = getattr(optim, name)(arrays(shapes, 0), threads=threads, **options)
    grads = arrays(shapes, 1)
    return lambda: opt.step(grads)


def torch_step(
    name: str, shapes: list[int], threads: int, options: dict[str, Any], **how: bool
) -> Contender | None:
    torch = peer("torch")
    if torch is None:
        return None
    torch.set_num_threads(threads)
    params = [torch.from_numpy(a).requires_grad_() for a in arrays(shapes, 0)]
    for p, g in zip(params, arrays(shapes, 1)):
        p.grad = torch.from_numpy(g)
    return getattr(torch.optim, name)(params, **options, **how).step


def optax_step(make: str, shapes: list[int], **options: Any) -> Contender | None:
    optax, jax = peer("optax"), peer("jax")
    if optax is None or jax is None:
        return None
    rule = getattr(optax, make)(**options)
    params = [jax.numpy.asarray(a) for a in arrays(shapes, 0)]
    grads = [jax.numpy.asarray(a) for a in arrays(shapes, 1)]

    def update(params: Any, state: Any, grads: Any) -> Any:
        change, state = rule.update(grads, state, params)
        return optax.apply_updates(params, change), state

    compiled = jax.jit(update, donate_argnums=(0, 1))
    held = [params, rule.init(params)]

    def step() -> None:
        held[0], held[1] = compiled(held[0], held[1], grads)
        jax.block_until_ready(held)

    return step


def numpy_adamw(shapes: list[int]) -> Contender:
    params, grads = arrays(shapes, 0), arrays(shapes, 1)
    state = [(np.zeros_like(p), np.zeros_like(p)) for p in params]
    count = [0]

    def step() -> None:
        count[0] += 1
        c1, c2 = 1 - 0.9 ** count[0], 1 - 0.999 ** count[0]
        for p, g, (m, v) in zip(params, grads, state):
            p *= np.float32(1 - 1e-3 * 1e-2)
            m += np.float32(0.1) * (g - m)
            v *= np.float32(0.999)
            v += np.float32(0.001) * g * g
            p -= np.float32(1e-3 / c1) * m / (np.sqrt(v) / np.float32(c2**0.5) + np.float32(1e-8))

    return step


def adamw_10m(threads: int) -> dict[str, Contender | None]:
    return {
        "fastopt": ours("AdamW", [BIG], threads),
        "torch fused": torch_step("AdamW", [BIG], threads, {}, fused=True),
        "torch default": torch_step("AdamW", [BIG], threads, {}),
        "optax": optax_step("adamw", [BIG], learning_rate=1e-3),
        "numpy": numpy_adamw([BIG]),
        "limit": limit("update3", *arrays([BIG] * 4, 2), threads=threads),
    }


def sgd_10m(threads: int) -> dict[str, Contender | None]:
    options = {"lr": 1e-3, "momentum": 0.9}
    return {
        "fastopt": ours("SGD", [BIG], threads, **options),
        "torch fused": torch_step("SGD", [BIG], threads, options, fused=True),
        "torch default": torch_step("SGD", [BIG], threads, options),
        "optax": optax_step("sgd", [BIG], learning_rate=1e-3, momentum=0.9),
        "limit": limit("update2", *arrays([BIG] * 3, 2), threads=threads),
    }


def adamw_200(threads: int) -> dict[str, Contender | None]:
    shapes = [1000] * 200
    return {
        "fastopt": ours("AdamW", shapes, threads),
        "torch fused": torch_step("AdamW", shapes, threads, {}, fused=True),
        "torch default": torch_step("AdamW", shapes, threads, {}),
        "optax": optax_step("adamw", shapes, learning_rate=1e-3),
        "numpy": numpy_adamw(shapes),
        # as many bytes in one piece: they lie in the last cache
        "limit": limit("update3", *arrays([sum(shapes)] * 4, 2), threads=threads),
    }


def adamw_1(threads: int) -> dict[str, Contender | None]:
    return {
        "fastopt": ours("AdamW", [1000]),
        "torch fused": torch_step("AdamW", [1000], threads, {}, fused=True),
        "torch default": torch_step("AdamW", [1000], threads, {}),
        "numpy": numpy_adamw([1000]),
    }


def family_10m(
    name: str, states: int, optax: str | None = None, fused: bool = False
) -> Callable[[int], dict[str, Contender | None]]:
    """The step of one family with ``states`` state arrays, torch's (if it has one), optax's."""

    def contenders(threads: int) -> dict[str, Contender | None]:
        torch = peer("torch")
        found: dict[str, Contender | None] = {"fastopt": ours(name, [BIG], threads)}
        if fused:
            found["torch fused"] = torch_step(name, [BIG], threads, {}, fused=True)
        if torch is not None and hasattr(torch.optim, name):
            found["torch default"] = torch_step(name, [BIG], threads, {})
        if optax is not None:
            found["optax"] = optax_step(optax, [BIG], learning_rate=1e-4)
        streams = arrays([BIG] * (states + 2), 2)
        found["limit"] = limit(f"update{states + 1}", *streams, threads=threads)
        return found

    return contenders


def matrix(name: str, side: int) -> Callable[[int], dict[str, Contender | None]]:
    """A family that works on matrices, on a square one."""

    def contenders(threads: int) -> dict[str, Contender | None]:
        p, g = (a.reshape(side, side) for seed in (0, 1) for a in arrays([side * side], seed))
        mine = getattr(optim, name)(p.copy(), threads=threads)
        found: dict[str, Contender | None] = {"fastopt": lambda: mine.step(g)}
        torch = peer("torch")
        if torch is not None and hasattr(torch.optim, name):
            torch.set_num_threads(threads)
            theirs = torch.from_numpy(p.copy()).requires_grad_()
            theirs.grad = torch.from_numpy(g)
            found["torch default"] = getattr(torch.optim, name)([theirs]).step
        return found

    return contenders


def narrow_10m(threads: int) -> dict[str, Contender | None]:
    """int8 state: "float32 state" and "bfloat16 state" are our own steps."""
    p, g = arrays([BIG] * 2, 2)
    codes = [np.zeros(BIG, "i1") for _ in range(2)]
    return {
        "fastopt": ours("AdamW", [BIG], threads, state_dtype="int8"),
        "float32 state": ours("AdamW", [BIG], threads),
        "bfloat16 state": ours("AdamW", [BIG], threads, state_dtype="bfloat16"),
        "torch fused": torch_step("AdamW", [BIG], threads, {}, fused=True),
        "bitsandbytes": bitsandbytes_step([BIG], threads),
        "limit": limit("update1b2", p, *codes, g, threads=threads),
    }


def bitsandbytes_step(shapes: list[int], threads: int) -> Contender | None:
    torch, bnb = peer("torch"), peer("bitsandbytes")
    if torch is None or bnb is None:
        return None
    torch.set_num_threads(threads)
    params = [torch.nn.Parameter(torch.from_numpy(a)) for a in arrays(shapes, 0)]
    for p, g in zip(params, arrays(shapes, 1)):
        p.grad = torch.from_numpy(g)
    return bnb.optim.AdamW8bit(params).step


def adapter_200(threads: int) -> dict[str, Contender | None]:
    torch = peer("torch")
    if torch is None:
        return {"fastopt": lambda: None}
    from fastopt.integrations.torch import AdamW

    torch.set_num_threads(threads)
    shapes = [1000] * 200
    params = [torch.from_numpy(a).requires_grad_() for a in arrays(shapes, 0)]
    for p, g in zip(params, arrays(shapes, 1)):
        p.grad = torch.from_numpy(g)
    return {
        "fastopt": AdamW(params, threads=threads).step,
        "torch fused": torch_step("AdamW", shapes, threads, {}, fused=True),
        "torch default": torch_step("AdamW", shapes, threads, {}),
    }


def fused_10m(threads: int) -> dict[str, Contender | None]:
    """Clip by norm, step, zero the gradients, average: in one step, and one after the other."""
    options = {"max_grad_norm": 1e9, "zero_grads": True, "ema_decay": 0.999}
    separate = optim.AdamW(arrays([BIG], 0), threads=threads)
    (g,), (ema,) = arrays([BIG], 1), arrays([BIG], 0)
    (p,) = separate.param_groups[0]["params"]

    def apart() -> None:
        norm = float(np.sqrt(np.dot(g, g)))
        np.multiply(g, np.float32(min(1.0, 1e9 / (norm + 1e-6))), out=g)
        separate.step([g])
        g.fill(0)
        np.add(ema, np.float32(0.001) * (p - ema), out=ema)

    return {"fastopt": ours("AdamW", [BIG], threads, **options), "numpy": apart}


CASES = [
    Case(
        "AdamW, one 10M float32 array",
        adamw_10m,
        threads=2,
        targets={"torch fused": 1.1, "torch default": 10, "optax": 1.6, "limit": 1.0},
    ),
    Case("AdamW, one 10M float32 array", adamw_10m, threads=1, targets={"limit": 0.85}),
    Case("SGD with momentum, one 10M float32 array", sgd_10m, threads=2, targets={"limit": 0.95}),
    Case("AdamW, 200 arrays of 1,000", adamw_200, threads=2, targets={"torch fused": 27}),
    Case("AdamW, 200 arrays of 1,000", adamw_200, threads=1, targets={"torch fused": 15}),
    Case("Lion, one 10M float32 array", family_10m("Lion", 1, "lion"), 2, {"limit": 0.95}),
    Case(
        "RMSprop, one 10M float32 array",
        family_10m("RMSprop", 1),
        threads=2,
        targets={"limit": 0.95, "torch default": 5},
    ),
    *(
        Case(f"{name}, one 10M float32 array", family_10m(name, *how), 2, targets, rounds=5)
        for name, how, targets in (
            ("NAdam", (2,), {"torch default": 5}),
            ("RAdam", (2,), {"torch default": 5}),
            ("Adamax", (2,), {"torch default": 5}),
            ("Adagrad", (1, None, True), {"torch fused": 1}),
            ("Adadelta", (2,), {"torch default": 5}),
            ("LAMB", (2, "lamb"), {"optax": 1.6}),
        )
    ),
    *(
        Case(f"{name}, {n} x {n} float32 matrix", matrix(name, n), 2, targets, rounds=5)
        for name, n, targets in (
            ("Adafactor", 2048, {"torch default": 5}),
            ("Muon", 1024, {"torch default": 1}),
        )
    ),
    Case(
        "AdamW with int8 state, one 10M float32 array",
        narrow_10m,
        threads=2,
        targets={"float32 state": 1.18, "bitsandbytes": 40},
        rounds=5,
    ),
    Case(
        "AdamW in torch, 200 tensors of 1,000",
        adapter_200,
        threads=2,
        targets={"torch fused": 10},
    ),
    Case("AdamW with clipping, zeroing, average, 10M", fused_10m, threads=2),
    Case("AdamW, one array of 1,000", adamw_1, threads=1, targets={"torch fused": 60}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_update(case: Case, benchmark: Any) -> None:
    case.run(benchmark)
