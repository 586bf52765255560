"""The depthwise kernel against its twin, on every level and thread count."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt._kernels import levels
from fastopt.errors import ArrayError
from tests import reference as twin
from tests.conftest import THREADS, Guarded, kernel

STEPS = [(1, 1, 1, 1), (2, 1, 1, 2), (1, 2, 2, 1), (3, 2, 1, 1)]  # strides, dilations


def _planes(n: int, steps: tuple[int, ...], rng: np.random.Generator) -> list[np.ndarray]:
    """x, w and a y of random planes: 3 channels, a kernel of 3 x 4, 2 x 4 places."""
    sh, sw, dh, dw = steps
    shapes = [(3, sh + 2 * dh + 1, 3 * sw + 3 * dw + 1, n), (3, 3, 4), (3, 2, 4, n)]
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 33, 63, 64, 65, 70, 1000])
@pytest.mark.parametrize("threads", THREADS)
def test_it_is_the_twin(steps, n, threads, level, rng) -> None:
    x, w, dy = _planes(n, steps, rng)
    module = kernel("depthwise", level)
    wanted, seen = twin.depthwise(x, w, dy.shape, *steps)
    y = Guarded(np.full_like(dy, 7))
    module.filter_planes(y.array, x, w, *steps, threads)
    y.check()
    np.testing.assert_allclose(y.array, wanted, rtol=1e-4, atol=1e-5)
    dw = Guarded(np.full_like(w, 7))
    module.weigh_planes(dw.array, x, dy, *steps, threads)
    dw.check()
    wanted = np.einsum("cabijn,cijn->cab", seen, dy.astype(np.float64))
    np.testing.assert_allclose(dw.array, wanted, rtol=1e-3, atol=1e-3)
    dx = Guarded(np.zeros_like(x))
    module.spread_planes(dx.array, dy, w, *steps, threads)
    dx.check()
    # <dx, x> = <dy, y> whatever x: spreading is the transpose of filtering
    other = rng.standard_normal(x.shape).astype(np.float32)
    filtered = twin.depthwise(other, w, dy.shape, *steps)[0]
    found = float((dx.array.astype(np.float64) * other).sum())
    assert found == pytest.approx(float((filtered * dy).sum()), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("steps", STEPS)
def test_levels_and_threads_have_the_same_bits(steps, rng) -> None:
    x, w, dy = _planes(77, steps, rng)
    found = set()
    for level in levels():
        for threads in (1, 2, 3):
            module = kernel("depthwise", level)
            y, dw, dx = np.empty_like(dy), np.empty_like(w), np.zeros_like(x)
            module.filter_planes(y, x, w, *steps, threads)
            module.weigh_planes(dw, x, dy, *steps, threads)
            module.spread_planes(dx, dy, w, *steps, threads)
            found.add((y.tobytes(), dw.tobytes(), dx.tobytes()))
    assert len(found) == 1


def test_wrong_arrays_are_refused(level, rng) -> None:
    x, w, dy = _planes(5, STEPS[0], rng)
    module = kernel("depthwise", level)
    with pytest.raises(ArrayError, match="x"):
        module.filter_planes(np.empty_like(dy), x[:, :, ::2], w, *STEPS[0], 1)
    with pytest.raises(ArrayError, match="w"):
        module.filter_planes(np.empty_like(dy), x, w[:2], *STEPS[0], 1)
    y = np.empty_like(dy)
    y.flags.writeable = False
    with pytest.raises(ArrayError, match="y"):
        module.filter_planes(y, x, w, *STEPS[0], 1)
