"""Pruning: magnitudes against NumPy and torch, N:M, sparse products against the dense one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt
from benchmarks.harness import Case, limit, peer
from fastopt.pruning import SparseLinear

N = 10_000_000
SPARSITY = 0.8


def normal(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def numpy_prune(w: Any) -> Any:
    magnitude = np.abs(w)
    k = round(SPARSITY * w.size)
    return np.where(magnitude > np.partition(magnitude, k - 1)[k - 1], w, np.float32(0))


def torch_prune(w: Any) -> Any:
    torch = peer("torch")
    if torch is None:
        return None
    from torch.nn.utils import prune

    module = torch.nn.Module()
    module.register_parameter("weight", torch.nn.Parameter(torch.from_numpy(w.copy())))

    def run() -> None:
        prune.global_unstructured(
            [(module, "weight")], pruning_method=prune.L1Unstructured, amount=SPARSITY
        )
        prune.remove(module, "weight")
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(w))

    return run


def global_10m(threads: int) -> dict[str, Any]:
    """One 10M float32 array, new result and mask."""
    w = normal(N)
    cases = {
        "fastopt": lambda: fastopt.prune(w, SPARSITY, threads=threads),
        "NumPy select + where": lambda: numpy_prune(w),
    }
    if run := torch_prune(w):
        cases["torch prune.global_unstructured"] = run
    return cases


def into_10m(threads: int) -> dict[str, Any]:
    """The same into an array that is there, no mask."""
    w, out = normal(N), np.empty(N, np.float32)
    return {
        "fastopt": lambda: fastopt.prune(w, SPARSITY, out=out, masks="none", threads=threads),
        "NumPy select + where": lambda: numpy_prune(w),
        "limit": limit("copy1to1", w.view(np.uint8), out.view(np.uint8), threads=threads),
    }


def two_of_four(threads: int) -> dict[str, Any]:
    """2:4 along the last axis of 4096 x 4096, into an array that is there."""
    w, out = normal(4096, 4096), np.zeros((4096, 4096), np.float32)
    cases = {
        "fastopt": lambda: fastopt.prune(w, pattern="2:4", out=out, masks="none", threads=threads),
        "limit": limit("copy1to1", w.view(np.uint8), out.view(np.uint8), threads=threads),
    }
    if torch := peer("torch"):
        t = torch.from_numpy(w).reshape(-1, 4)

        def topk() -> Any:
            mask = torch.zeros_like(t)
            mask.scatter_(1, t.abs().topk(2, dim=1).indices, 1)
            return t * mask

        cases["torch topk + scatter"] = topk
    return cases


def sharing(threads: int) -> dict[str, Any]:
    """16 shared values of 1M weights with heavy tails."""
    w = np.random.default_rng(0).standard_t(5, 1_000_000).astype(np.float32)
    cases = {"fastopt": lambda: fastopt.cluster_weights(w, 16, threads=threads)}
    if cluster := peer("sklearn.cluster"):
        column = w[:, None]
        cases["scikit-learn KMeans"] = lambda: cluster.KMeans(
            16, n_init=1, max_iter=15, random_state=0
        ).fit(column)
    return cases


def product(share: float, pattern: str, batch: int) -> Any:
    def build(threads: int) -> dict[str, Any]:
        w = fastopt.prune(normal(1024, 1024), share, pattern=pattern).arrays
        x, s = (
            normal(1024, batch),
            SparseLinear.from_dense(w, "csr" if pattern == "unstructured" else pattern),
        )
        out = np.empty((1024, batch), np.float32)
        cases = {
            "fastopt": lambda: s.matmul(x, out=out, threads=threads),
            "NumPy dense": lambda: np.matmul(w, x, out=out),
        }
        if sparse := peer("scipy.sparse"):
            rows = sparse.csr_matrix(w)
            cases["scipy CSR"] = lambda: rows @ x
        return cases

    return build


CASES = [
    Case(
        "global magnitude prune, 10M float32",
        global_10m,
        threads=2,
        targets={"NumPy select + where": 5, "torch prune.global_unstructured": 100},
    ),
    Case(
        "the same into a given array, no mask",
        into_10m,
        threads=2,
        targets={"NumPy select + where": 5},
    ),
    Case(
        "2:4 mask, 4096 x 4096 float32, into a given array",
        two_of_four,
        threads=2,
        targets={"limit": 1 / 1.1, "torch topk + scatter": 74},
    ),
    Case(
        "weight sharing, 16 values, 1M float32",
        sharing,
        threads=2,
        targets={"scikit-learn KMeans": 300},
    ),
    Case("sparse product 4x1, 80 %, batch 64", product(0.8, "4x1", 64), threads=2),
    Case("sparse product 4x1, 90 %, batch 256", product(0.9, "4x1", 256), threads=2),
    Case("sparse product CSR, 90 %, batch 64", product(0.9, "unstructured", 64), threads=2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_prune(case: Case, benchmark: Any) -> None:
    case.run(benchmark)
