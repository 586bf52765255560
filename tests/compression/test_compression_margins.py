"""Margins: losses that few rows do not show, told from a larger difference to the original."""

import numpy as np
import pytest

from fastopt.compression.confirm import Drop, drop_of, jackknife
from fastopt.compression.data import open_rows
from fastopt.compression.margins import Margins, estimate, margins_of, moved
from fastopt.compression.metric import Metric, Outputs
from fastopt.models.base import Input

RNG = np.random.default_rng(0)


def rows_of(n):
    return open_rows({"x": np.zeros((n, 1), np.float32)}, (Input("x", "float32", (None, 1)),))


def outputs(a):
    return Outputs([{"y": np.asarray(a, np.float32)}])


FLIPS = Metric("flips", lambda o, _, __, r: float(((o["y"] > 0.5) == (r["y"] > 0.5)).mean()))
COSINE = Metric(
    "r2",
    lambda o, _, __, r: float(
        1 - ((o["y"] - r["y"]) ** 2).sum() / ((r["y"] - r["y"].mean()) ** 2).sum()
    ),
)


def margins(metric, before, after):
    rows, a, b = rows_of(len(before)), outputs(before), outputs(after)
    return margins_of(metric, rows, a, b, drop_of(metric, rows, a, b), {})


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_a_loss_that_no_row_shows_is_foretold():
    z = RNG.uniform(-10, 10, 40)
    z[np.abs(z) < 1] += 2  # nobody is near enough to flip
    found = margins(FLIPS, sigmoid(z), sigmoid(z + RNG.choice([-0.8, 0.8], 40)))
    assert found.losses[0] == 0
    assert found.losses[2] > 0
    assert 0 < found.value < found.cautious <= found.scattered
    safe = margins(FLIPS, sigmoid(z), sigmoid(z + 1e-3))
    assert safe.value == safe.cautious == 0


def test_flips_of_many_rows_are_counted_as_they_are():
    z = RNG.uniform(-10, 10, 20000)
    noisy = z + RNG.normal(0, 0.3, z.size)
    found = margins(FLIPS, sigmoid(z), sigmoid(noisy))
    plain = float(((z > 0) != (noisy > 0)).mean())
    assert found.value == pytest.approx(plain, rel=0.25)


def test_a_smooth_loss_is_not_taken_for_more_than_it_is():
    y = RNG.standard_normal((200, 4))
    found = margins(COSINE, y, y + RNG.normal(0, 0.05, y.shape))
    assert found.power == pytest.approx(2, abs=0.01)
    assert found.value == pytest.approx(found.losses[0], rel=0.01)


def test_moving_by_one_gives_the_outputs_and_by_nought_the_original():
    p = sigmoid(RNG.normal(0, 3, (5, 3))).astype(np.float32)
    classes = (p / p.sum(axis=1, keepdims=True)).astype(np.float32)
    for a, scale in ((p, "odds"), (classes, "classes"), (p - 0.5, "values")):
        b = a[::-1]
        one, none = (
            moved(outputs(a), outputs(b), k, {"y": scale}, {"y": 1}).parts[0]["y"] for k in (1, 0)
        )
        np.testing.assert_allclose(one, b, atol=1e-5)
        np.testing.assert_allclose(none, a, atol=1e-5)


def test_integer_outputs_have_their_plain_drop():
    a = Outputs([{"y": np.arange(10)}])
    b = Outputs([{"y": np.arange(10) // 2 * 2}])
    same = Metric("same", lambda o, _, __, r: float((o["y"] == r["y"]).mean()))
    drop = drop_of(same, rows_of(10), a, b)
    found = margins_of(same, rows_of(10), a, b, drop, {})
    assert found.value == drop.value == 0.5


def test_joined_margins_weigh_by_rows():
    a = Margins(np.array([0.0, 0.0, 0.0]), 0.0, 1.0, 30)
    b = Margins(np.array([0.04, 0.08, 0.16]), 0.02, 1.0, 10)
    both = a.joined(b)
    assert both.n == 40
    assert both.value == pytest.approx(0.01)
    assert both.std_error == pytest.approx(0.005)
    assert both.scattered == pytest.approx(0.02)


def test_the_estimate_is_never_below_the_drop_less_its_error():
    found = Margins(np.array([0.01, 0.0, 0.0]), 0.0, 1.0, 100, least=0.009)
    assert estimate(found.losses, 1.0) < found.value == 0.009


def test_jackknife_of_a_mean():
    x = RNG.standard_normal(10)
    error = jackknife(10, lambda index: float(x[index].mean()))
    assert error == pytest.approx(x.std(ddof=1) / np.sqrt(10))
    assert isinstance(Drop(0.0, error, 10).margin, float)
