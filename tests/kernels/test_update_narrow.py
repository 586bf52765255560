"""The rounding noise of narrow optimiser state, and Adam's own loops over it against the twin."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt._kernels import update_state
from tests import reference
from tests.conftest import SIZES, THREADS, Guarded, kernel, sample

KINDS = {"bfloat16": ("u2", "u2"), "int8": ("i1", "u1")}
KEYS = 3000


def rounded_up(signed: bool, share: float) -> np.ndarray:
    """(keys, elements): which elements of a block were rounded up from code 20 + share."""
    x = np.full(256, reference.companded(np.array([20 + share]), signed)[0], "f4")
    x[0] = 1.0
    codes, scales = np.zeros(256, "i1" if signed else "u1"), np.zeros(1, "f4")
    found = np.empty((KEYS, 256), bool)
    for key in range(KEYS):
        update_state.encode_state(codes, scales, x, key)
        found[key] = codes == 21
    return found[:, 1:]


@pytest.mark.parametrize("signed", [True, False])
def test_every_element_is_rounded_without_bias(signed):
    """Over the keys each element goes up with its fraction; a key does not tell the next one."""
    up = rounded_up(signed, 0.3)
    sigma = (0.3 * 0.7 / KEYS) ** 0.5
    assert np.abs(up.mean(0) - 0.3).max() < 5 * sigma
    assert abs(up.mean() - 0.3) < 1e-3
    centred = up - up.mean(0)
    together = (centred[1:] * centred[:-1]).mean(0) / 0.21
    assert np.abs(together).max() < 5 / KEYS**0.5
    # within a block the shares are even: the lattice leaves less to chance than independent draws
    assert up.mean(1).std() < (0.21 / 255) ** 0.5


def test_roundings_of_a_moment_cancel():
    """m <- 0.95 m + 0.05 g in 8 bits: its error from going on along the lattice has little more
    than half the variance of that from fresh noise, and no mean."""
    errors = {}
    for name in ("along", "fresh"):
        rng = np.random.default_rng(0)
        exact, m = np.zeros(25_600), np.zeros(25_600, "f4")
        codes, scales = np.zeros(25_600, "i1"), np.zeros(100, "f4")
        for t in range(200):
            g = rng.standard_normal(25_600).astype("f4")
            exact, m = 0.95 * exact + 0.05 * g, np.float32(0.95) * m + np.float32(0.05) * g
            key, turn = (3, t) if name == "along" else (t << 32, 0)
            update_state.encode_state(codes, scales, m, key, turn)
            update_state.decode_state(m, codes, scales)
        error = m - exact
        assert abs(error.mean()) < 4 * error.std() / 25_600**0.5
        errors[name] = error.std() / exact.std()
    assert errors["along"] < 0.03
    assert errors["along"] ** 2 < 0.65 * errors["fresh"] ** 2


def state_of(n: int, kind: str) -> tuple[list[Guarded], list[Guarded]]:
    codes = [Guarded(np.zeros(n, c)) for c in KINDS[kind]]
    scales = [Guarded(np.zeros(-(-n // 256), "f4")) for _ in codes] if kind == "int8" else []
    return codes, scales


def widened(codes: list[Guarded], scales: list[Guarded]) -> list[np.ndarray]:
    out = [np.zeros(c.array.size, "f4") for c in codes]
    for k, x in enumerate(out):
        update_state.decode_state(x, codes[k].array, scales[k].array if scales else None)
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coupled", [0.0, 0.3])
@pytest.mark.parametrize("threads", THREADS)
def test_adam_on_narrow_state(level, kind, coupled, threads):
    """One step from any state: the weights as the twin's, the state within one code of it."""
    values = (1e-2, -1, coupled, 0.1, 0.9, 0.999, 1e-8)
    for n in (*SIZES, 1000, 20_003):
        p, (codes, scales) = Guarded(sample(n, "float32", seed=n)), state_of(n, kind)
        plan = kernel("update", level).Plan(
            ["adam"],
            [p.array],
            [tuple(c.array for c in codes)],
            [0],
            [tuple(s.array for s in scales)],
            5,
        )
        plan.set_options(0, values)
        for t in (1, 2, 3):
            g = sample(n, "float32", seed=10 * n + t)
            want, (m, v) = p.array.copy(), widened(codes, scales)
            plan.step((g,), 0.5, 0.0, False, threads)
            reference.adam(
                want, g, m, v, None, t, 1e-2, 0.9, 0.999, 1e-8, coupled=coupled, decoupled=0.1,
                scale=-0.5,
            )  # fmt: skip
            np.testing.assert_allclose(p.array, want, rtol=2e-6, atol=2e-7)
            got_m, got_v = widened(codes, scales)
            if kind == "bfloat16":
                np.testing.assert_allclose(got_m, m, rtol=2.0**-8, atol=1e-8)
                np.testing.assert_allclose(got_v, v, rtol=2.0**-7, atol=1e-30)
            elif n:
                top = np.repeat(np.maximum.reduceat(np.abs(m), np.arange(0, n, 256)), 256)[:n]
                # a code is at most 1/63 of the largest; the second moment's, 1/63 too
                assert (np.abs(got_m - m) <= top / 62).all()
                top = np.repeat(np.maximum.reduceat(v, np.arange(0, n, 256)), 256)[:n]
                assert (np.abs(got_v - v) <= top / 62).all()
                assert (got_v[v > 0] > 0).all()
        for guarded in (p, *codes, *scales):
            guarded.check()


def test_adam_on_narrow_state_by_level_and_values():
    """NaN and infinity in a gradient poison their block and no other, on every level alike."""
    from fastopt._kernels import levels

    for kind in KINDS:
        found = set()
        for one in levels():
            p, (codes, scales) = Guarded(sample(1000, "float32")), state_of(1000, kind)
            plan = kernel("update", one).Plan(
                ["adam"], [p.array], [tuple(c.array for c in codes)], [0],
                [tuple(s.array for s in scales)], 5,
            )  # fmt: skip
            plan.set_options(0, (1e-2, 1, 0.01, 0, 0.9, 0.999, 1e-8))
            for t in range(4):
                g = sample(1000, "float32", seed=t)
                g[300], g[999] = (np.nan, np.inf) if t == 1 else (1.0, 1e-30)
                plan.step((g,), 1.0, 0.0, False, 1)
            bad = np.isnan(p.array)
            assert bad[300]
            assert bad[999]
            assert not bad[:256].any()
            assert not bad[512:768].any()
            assert bad.sum() == (2 if kind == "bfloat16" else 256 + 1000 - 768)
            assert all(np.isfinite(x[:256]).all() for x in widened(codes, scales))
            found.add((p.array[~bad].tobytes(), *(c.array[:256].tobytes() for c in codes)))
        assert len(found) == 1
