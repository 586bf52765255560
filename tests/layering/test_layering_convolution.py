"""Convolutions split in two or three, blocks that can be dropped, linear layers that are one."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.layering import block_influence, split_convolution, split_cp, split_depthwise
from fastopt.merging import fold_linear


def whole(first: np.ndarray, core: np.ndarray, last: np.ndarray) -> np.ndarray:
    n_out, n_in = len(last), first.shape[1]
    u, v = last.reshape(n_out, -1), first.reshape(-1, n_in)
    return np.einsum("oa,abk,bi->oik", u, core.reshape(*core.shape[:2], -1), v)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("window", [(3, 3), (5,), (1, 1), (2, 3, 2)])
def test_tucker_is_lossless_at_full_rank_and_falls_with_rank(
    dtype: str, window: tuple[int, ...], rng: np.random.Generator
) -> None:
    w = rng.standard_normal((8, 6, *window)).astype(dtype)
    flat = w.reshape(8, 6, -1)
    parts = split_convolution(w, (8, 6))
    assert all(p.dtype == dtype and p.flags.c_contiguous for p in parts)
    assert parts[1].shape == (8, 6, *window)
    np.testing.assert_allclose(whole(*parts), flat, atol=1e-5)
    errors = []
    for ranks in ((1, 1), (3, 2), (5, 4), (7, 6)):
        parts = split_convolution(w, ranks)
        assert [p.shape[0] for p in parts] == [ranks[1], ranks[0], 8]
        errors.append(np.linalg.norm(flat - whole(*parts)))
    assert errors == sorted(errors, reverse=True)


def test_tucker_finds_a_low_rank_kernel(rng: np.random.Generator) -> None:
    w = np.einsum(
        "oa,abhw,bi->oihw",
        rng.standard_normal((10, 3)), rng.standard_normal((3, 2, 3, 3)),
        rng.standard_normal((2, 8)),
    )  # fmt: skip
    first, core, last = split_convolution(w, energy=1 - 1e-9)
    assert core.shape[:2] == (3, 2)
    np.testing.assert_allclose(whole(first, core, last), w.reshape(10, 8, -1), atol=1e-8)


def test_the_split_runs_as_torch_runs_it(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    conv = torch.nn.functional.conv2d
    w = rng.standard_normal((6, 4, 3, 3)).astype("float32")
    x = torch.from_numpy(rng.standard_normal((2, 4, 9, 9)).astype("float32"))
    y = conv(x, torch.from_numpy(w), stride=2, padding=1)
    first, core, last = (torch.from_numpy(p) for p in split_convolution(w, (6, 4)))
    z = conv(conv(conv(x, first), core, stride=2, padding=1), last)
    np.testing.assert_allclose(z, y, atol=1e-4)
    depth, point = (torch.from_numpy(p) for p in split_depthwise(w, 6))
    z = conv(conv(x, depth, stride=2, padding=1, groups=4), point)
    np.testing.assert_allclose(z, y, atol=1e-4)


def test_depthwise_is_the_best_of_each_channel(rng: np.random.Generator) -> None:
    w = rng.standard_normal((7, 3, 3, 3))
    for m in (1, 2):
        depth, point = split_depthwise(w, m)
        back = np.einsum("oim,imk->oik", point.reshape(7, 3, m), depth.reshape(3, m, 9)).reshape(
            w.shape
        )
        tails = [
            (np.linalg.svd(w[:, i].reshape(7, 9), compute_uv=False)[m:] ** 2).sum()
            for i in range(3)
        ]
        assert ((w - back) ** 2).sum() == pytest.approx(sum(tails))


def polyadic(parts: tuple[np.ndarray, ...]) -> np.ndarray:
    """The convolution that the parts of split_cp stand for."""
    first, *depths, last = parts
    full = np.ones((len(first), *(1 for _ in depths)))
    for d in depths:
        full = full * d[:, 0]
    r = len(first)
    return np.einsum("or,ri,r...->oi...", last.reshape(-1, r), first.reshape(r, -1), full)


@pytest.mark.parametrize("window", [(3,), (3, 3), (5, 3), (2, 3, 4)])
def test_cp_finds_what_has_few_components(
    window: tuple[int, ...], rng: np.random.Generator
) -> None:
    shapes = [(12, 3, *(1 for _ in window))]
    first = rng.standard_normal((3, 7, *(1 for _ in window)))
    depths = [
        rng.standard_normal((3, 1, *(n if a == axis else 1 for a, n in enumerate(window))))
        for axis in range(len(window))
    ]
    w = polyadic((first, *depths, rng.standard_normal(shapes[0])))
    parts = split_cp(w, 3)
    assert [p.shape for p in parts] == [p.shape for p in (first, *depths)] + shapes
    assert np.linalg.norm(polyadic(parts) - w) < 1e-3 * np.linalg.norm(w)
    again = split_cp(w, 3)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))


def test_cp_error_falls_with_the_rank_and_scales_with_w(rng: np.random.Generator) -> None:
    w = rng.standard_normal((10, 8, 3, 3))
    errors = [np.linalg.norm(polyadic(split_cp(w, r)) - w) for r in (1, 4, 16, 64)]
    assert sorted(errors, reverse=True) == errors
    best = np.linalg.svd(w.reshape(10, -1))[1]  # one component is at most the matrix's best
    assert np.linalg.norm(w) ** 2 - errors[0] ** 2 <= best[0] ** 2
    big = split_cp((w * 1e30).astype("f4"), 4)
    np.testing.assert_allclose(np.linalg.norm(polyadic(big) / 1e30 - w), errors[1], rtol=1e-3)
    assert not polyadic(split_cp(np.zeros((3, 2, 3)), 2)).any()


def test_cp_runs_as_torch_runs_it(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    conv = torch.nn.functional.conv2d
    w = rng.standard_normal((6, 4, 3, 3))
    parts = split_cp(w, 5)
    x = torch.tensor(rng.standard_normal((2, 4, 9, 8)))
    first, rows, columns, last = (torch.tensor(p) for p in parts)
    y = conv(x, first)
    y = conv(y, rows, stride=(2, 1), padding=(1, 0), groups=5)
    y = conv(y, columns, stride=(1, 2), padding=(0, 1), groups=5)
    wanted = conv(x, torch.tensor(polyadic(parts)), stride=2, padding=1)
    np.testing.assert_allclose(conv(y, last).numpy(), wanted.numpy(), atol=1e-12)


def test_influence_ranks_blocks(rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, 20, 8))
    small, large = x + 0.01 * rng.standard_normal(x.shape), rng.standard_normal(x.shape)
    assert block_influence(x, x) < 1e-12
    assert block_influence(x, small) < 1e-3 < 0.5 < block_influence(x, large)
    x[0, 0] = 0
    assert block_influence(x, x) < 1e-12


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_two_linear_layers_are_one(dtype: str, rng: np.random.Generator) -> None:
    w1, w2 = rng.standard_normal((9, 4)).astype(dtype), rng.standard_normal((5, 9)).astype(dtype)
    b1, b2 = rng.standard_normal(9).astype(dtype), rng.standard_normal(5).astype(dtype)
    x = rng.standard_normal((20, 4))
    for one in (None, b1):
        for two in (None, b2):
            w, b = fold_linear(w1, one, w2, two)
            assert w.dtype == dtype
            assert (b is None) == (one is None and two is None)
            y = (x @ w1.T + (0 if one is None else one)) @ w2.T + (0 if two is None else two)
            np.testing.assert_allclose(x @ w.T + (0 if b is None else b), y, atol=1e-4)


def test_refusals() -> None:
    w = np.ones((4, 3, 2))
    for call, kind, word in (
        (lambda: split_convolution(w), OptionError, "either"),
        (lambda: split_convolution(w, (5, 1)), OptionError, "ranks"),
        (lambda: split_convolution(w, 3), OptionError, "ranks"),
        (lambda: split_convolution(w[0], (1, 1)), ArrayError, "w"),
        (lambda: split_convolution(w * np.inf, (1, 1)), ArrayError, "w"),
        (lambda: split_depthwise(w, 3), OptionError, "multiplier"),
        (lambda: split_depthwise(w.astype(int)), DTypeError, "w"),
        (lambda: block_influence(w, w[:2]), ArrayError, "after"),
        (lambda: block_influence(w[0, 0], w[0, 0]), ArrayError, "before"),
        (lambda: fold_linear(np.ones((2, 2)), None, np.ones((2, 3))), ArrayError, "w2"),
        (lambda: fold_linear(np.ones((2, 2)), np.ones(3), np.ones((2, 2))), ArrayError, "b1"),
    ):
        with pytest.raises(kind, match=word):
            call()
