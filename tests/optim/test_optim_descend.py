"""descend: known minima, closed forms, budgets, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt import optim
from fastopt.errors import ArrayError, DivergedError, DTypeError, OptionError
from fastopt.optim import descend

METHODS = ["gd", "momentum", "nesterov", "adam", "lbfgs", optim.AdamW]


def rosenbrock(x):
    a, b = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    g = np.zeros_like(x)
    g[:-1] = -400 * x[:-1] * a - 2 * b
    g[1:] += 200 * a
    return (100 * a**2 + b**2).sum(), g


def bowl(x):
    a = np.linspace(1, 30, x.size).reshape(x.shape).astype(x.dtype)
    return 0.5 * (a * x * x).sum(), a * x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [
        ("gd", None),
        ("gd", "bb"),
        ("gd", "backtracking"),
        ("gd", 0.03),
        ("momentum", 0.01),
        ("nesterov", None),
        ("nesterov", 0.03),
        ("adam", 0.03),
        ("lbfgs", None),
        (optim.SGD, 0.03),
    ],
)
def test_bowl(optimizer, lr, dtype):
    start = np.linspace(-2, 2, 12, dtype=dtype).reshape(3, 4)
    before = start.copy()
    res = descend(bowl, start, optimizer=optimizer, lr=lr, max_iter=2000, tol=1e-4)
    assert res.converged
    assert res.x.dtype == dtype
    assert res.x.shape == start.shape
    assert np.abs(res.x).max() <= 1e-4
    assert (start == before).all()
    assert len(res.history) == res.n_iter + 1
    assert res.fun == res.history.min() == bowl(res.x)[0]
    assert res.n_evals >= res.n_iter + 1


@pytest.mark.parametrize(
    ("optimizer", "lr", "most"),
    [("lbfgs", None, 60), ("gd", "bb", 60), ("nesterov", None, 600), ("nesterov", 1e-4, 1500)],
)
def test_rosenbrock(optimizer, lr, most):
    res = descend(rosenbrock, [-1.2, 1.0], optimizer=optimizer, lr=lr, max_iter=most)
    assert res.converged
    np.testing.assert_allclose(res.x, [1, 1], atol=1e-5)


def test_lbfgs_takes_one_evaluation_an_iteration_where_values_are_noisy():
    a = np.geomspace(1, 100, 50)

    def f(x):  # as from single precision: the value rounded, the gradient nearly exact
        return float(np.float32(1 + 0.5 * a @ x**2)), a * x

    options = {"optimizer": "lbfgs", "tol": 1e-7, "max_iter": 200}
    res = descend(f, np.ones(50), noise=1e-6, **options)
    assert res.converged
    assert res.n_evals <= 1.2 * res.n_iter + 5
    with pytest.raises(OptionError, match="noise"):
        descend(f, np.ones(50), noise=-1.0, **options)
    with pytest.raises(OptionError, match="noise"):
        descend(f, np.ones(50), optimizer="gd", noise=1e-6)


def test_lbfgs_needs_about_as_many_evaluations_as_scipy():
    minimize = pytest.importorskip("scipy.optimize").minimize
    for n in (2, 10, 100):
        x0 = np.full(n, -1.0)
        res = descend(rosenbrock, x0, optimizer="lbfgs", tol=1e-6, max_iter=5000)
        theirs = minimize(
            rosenbrock,
            x0,
            jac=True,
            method="L-BFGS-B",
            options={"gtol": 1e-6, "ftol": 0, "maxiter": 5000, "maxfun": 9999},
        )
        assert res.converged
        assert res.fun <= theirs.fun + 1e-12
        assert res.n_evals <= 1.5 * theirs.nfev + 10


@pytest.mark.parametrize(("condition", "most"), [(1e2, 130), (1e3, 400), (1e4, 1300)])
def test_barzilai_borwein_on_ill_conditioned_bowls(condition, most):
    """About the iterations of conjugate directions, where steepest descent needs the condition
    number itself; few trial points are refused."""
    a = np.logspace(0, np.log10(condition), 1000)
    res = descend(
        lambda x: (0.5 * (a * x * x).sum(), a * x), np.ones(1000), lr="bb", max_iter=most
    )
    assert res.converged
    assert res.n_evals < 1.3 * res.n_iter


def test_barzilai_borwein_in_a_long_curved_valley():
    res = descend(rosenbrock, np.full(100, -1.0), lr="bb", max_iter=3000)
    assert res.converged
    np.testing.assert_allclose(res.x, 1, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 3, 9000])
def test_lbfgs_direction_is_that_of_the_two_loops(dtype, n, rng):
    """Slots used a third time, pairs without curvature among them."""
    from fastopt.optim import descent

    pairs, kept = descent._Pairs(np.zeros(n, dtype)), []
    a = np.linspace(1, 5, n).astype(dtype)
    x, g = np.zeros(n, dtype), np.zeros(n, dtype)
    for i in range(25):
        s = rng.standard_normal(n).astype(dtype)
        x_new, g_new = x + s, g + (-s if i % 7 == 3 else a * s)
        got = pairs.direction(x, g, x_new, g_new)
        kept = kept[1 - descent.MEMORY :]
        if i % 7 != 3:  # the others take the place of the oldest pair and leave it empty
            kept.append((x_new - x, g_new - g))
        q, alphas = -g_new.astype("f8"), []
        for s, y in reversed(kept):
            alphas.append(s @ q / (s @ y))
            q = q - alphas[-1] * y
        s, y = kept[-1]
        q *= (s @ y) / (y @ y)
        for (s, y), alpha in zip(kept, reversed(alphas), strict=True):
            q = q + (alpha - y @ q / (s @ y)) * s
        share = 1e-9 if dtype == "float64" else 2e-3
        np.testing.assert_allclose(got, q, atol=share * np.abs(q).max())
        x, g = x_new, g_new


def test_least_squares_line():
    """Every method reaches the line that the closed form gives."""
    rng = np.random.default_rng(0)
    x = rng.random(100)
    y = x**2
    a = np.column_stack([x, np.ones(100)])
    best, *_ = np.linalg.lstsq(a, y, rcond=None)

    def loss(p):
        r = a @ p - y
        return 0.5 * (r @ r) / 100, a.T @ r / 100

    for optimizer, lr in (
        ("gd", None),
        ("gd", 0.9),
        ("momentum", 0.1),
        ("nesterov", None),
        ("adam", 0.05),
        ("lbfgs", None),
    ):
        res = descend(loss, np.zeros(2), optimizer=optimizer, lr=lr, max_iter=5000)
        assert res.converged, optimizer
        np.testing.assert_allclose(res.x, best, atol=1e-4)


def test_fixed_step_is_gradient_descent():
    x, res = np.array([1.0, -2.0, 0.5]), None
    res = descend(bowl, x, lr=0.01, max_iter=25, tol=0)
    for _ in range(25):
        x = x - 0.01 * bowl(x)[1]
    np.testing.assert_array_equal(res.x, x)
    assert (res.n_iter, res.n_evals, res.converged) == (25, 26, False)
    assert "max_iter" in res.message


@pytest.mark.parametrize("optimizer", METHODS)
def test_budgets_and_callback(optimizer):
    seen = []

    def stop(n_iter, x, value):
        seen.append((n_iter, value))
        return n_iter == 3

    res = descend(rosenbrock, [-1.2, 1.0], optimizer=optimizer, callback=stop)
    assert res.n_iter == 3
    assert res.message == "stopped by callback"
    assert [v for _, v in seen] == list(res.history[1:])
    assert descend(rosenbrock, [-1.2, 1.0], optimizer=optimizer, max_time=0).n_iter == 0
    none = descend(rosenbrock, [-1.2, 1.0], optimizer=optimizer, max_iter=0)
    assert (none.n_iter, none.n_evals) == (0, 1)
    done = descend(rosenbrock, [1.0, 1.0], optimizer=optimizer)
    assert done.converged
    assert done.n_iter == 0


def test_the_function_may_reuse_its_gradient_or_return_x():
    buffer = np.zeros(4)

    def reuse(x):
        np.multiply(3.0, x, out=buffer)
        return 1.5 * (x @ x), buffer

    for optimizer in METHODS:
        a = descend(reuse, np.ones(4), optimizer=optimizer, max_iter=40)
        b = descend(
            lambda x: (1.5 * (x @ x), 3.0 * x), np.ones(4), optimizer=optimizer, max_iter=40
        )
        np.testing.assert_array_equal(a.x, b.x)
        descend(lambda x: (0.5 * (x @ x), x), np.ones(4), optimizer=optimizer, max_iter=40)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_divergence():
    res = descend(bowl, np.ones(3), lr=10.0, max_iter=1000)
    assert not res.converged
    assert "NaN or infinite" in res.message
    assert np.isfinite(res.x).all()
    assert res.fun == bowl(np.ones(3))[0]
    with pytest.raises(DivergedError, match="x0"):
        descend(lambda x: (np.nan, x), np.ones(3))
    with pytest.raises(DivergedError, match="x0"):
        descend(lambda x: (1.0, x * np.inf), np.ones(3))

    def walled(x):  # infinite below 0.5: line searches step back from it
        return (x[0], np.ones(1)) if x[0] > 0.5 else (np.inf, np.ones(1))

    for optimizer in ("gd", "lbfgs", "nesterov"):
        res = descend(walled, [5.0], optimizer=optimizer, max_iter=200)
        assert 0.5 < res.x[0] < 0.6


@pytest.mark.parametrize("optimizer", METHODS)
def test_callbacks_may_keep_and_write_x_and_raise(optimizer):
    def spoil(n_iter, x, value):
        x.fill(7)

    x0 = np.linspace(-2, 2, 5)
    plain = descend(bowl, x0, optimizer=optimizer, max_iter=30)
    spoilt = descend(bowl, x0, optimizer=optimizer, max_iter=30, callback=spoil)
    np.testing.assert_array_equal(spoilt.x, plain.x)
    with pytest.raises(KeyError, match="mine"):
        descend(bowl, x0, optimizer=optimizer, callback=lambda *a: {}["mine"])


@pytest.mark.parametrize(("optimizer", "lr"), [("gd", None), ("gd", "bb"), ("lbfgs", None)])
def test_products_that_underflow(optimizer, lr):
    """Of gradients near 1e-300 every inner product is 0."""
    res = descend(
        lambda x: (1e-300 * (x @ x), 2e-300 * x), np.ones(3), optimizer=optimizer, lr=lr, tol=0
    )
    assert np.isfinite(res.x).all()
    assert res.fun <= 3e-300


def test_stalls_are_told():
    """A float32 value cannot be lowered for ever; tol=0 ends with a message, not a loop."""
    for optimizer in ("gd", "lbfgs"):
        res = descend(
            lambda x: (bowl(x - np.float32(1 / 3))[0] + 1, bowl(x - np.float32(1 / 3))[1]),
            np.ones(5, "f4"),
            optimizer=optimizer,
            tol=0,
            max_iter=3000,
        )
        np.testing.assert_allclose(res.x, 1 / 3, atol=2e-3)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"optimizer": "newton"}, OptionError, "optimizer"),
        ({"optimizer": 7}, OptionError, "optimizer"),
        ({"lr": -1.0}, OptionError, "lr"),
        ({"lr": 0.0}, OptionError, "lr"),
        ({"lr": "wolfe"}, OptionError, "lr"),
        ({"optimizer": "lbfgs", "lr": 0.1}, OptionError, "lr"),
        ({"optimizer": "nesterov", "lr": "bb"}, OptionError, "lr"),
        ({"momentum": 0.9}, OptionError, "momentum"),
        ({"optimizer": "adam", "momentum": 0.9}, OptionError, "momentum"),
        ({"max_iter": -1}, OptionError, "max_iter"),
        ({"max_iter": 2.5}, DTypeError, "max_iter"),
        ({"tol": -1}, OptionError, "tol"),
        ({"max_time": -1}, OptionError, "max_time"),
    ],
)
def test_refused_options(kwargs, error, match):
    calls = []
    with pytest.raises(error, match=match):
        descend(lambda x: calls.append(x), np.ones(2), **kwargs)
    assert not calls


def test_refused_functions_and_starts():
    for function, error, match in (
        (lambda x: 1.0, DTypeError, "value, gradient"),
        (lambda x: ("a", x), DTypeError, "value"),
        (lambda x: (1.0, x[:1]), ArrayError, "gradient"),
        (None, DTypeError, "function"),
    ):
        with pytest.raises(error, match=match):
            descend(function, np.ones(2))
    with pytest.raises(ArrayError, match="x0"):
        descend(bowl, [1.0, np.nan])
    with pytest.raises(DTypeError, match="x0"):
        descend(bowl, ["a"])


def test_a_callback_that_is_none_is_refused_at_once():
    calls = []
    with pytest.raises(DTypeError, match="callback"):
        descend(lambda x: calls.append(x), [1.0], callback=3)
    assert not calls


# -- the unit of the function, and whose array x is -----------------------------------------------


@pytest.mark.parametrize("options", [
    {"optimizer": "lbfgs"}, {"optimizer": "gd"}, {"optimizer": "gd", "lr": "bb"},
    {"optimizer": "nesterov"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_scaled_problem_takes_the_same_path(options, dtype):
    a = np.array([1.0, 10.0, 30.0], dtype)
    paths = []
    for scale in (2.0**-60, 1.0, 2.0**60):
        seen = []

        def f(x, scale=scale, seen=seen):
            seen.append(x.copy())
            return scale * float((a * (x - 3) ** 2).sum()), x.dtype.type(scale) * 2 * a * (x - 3)

        descend(f, np.zeros(3, dtype), tol=0.0, max_iter=30, **options)
        paths.append(np.array(seen))
    for path in paths:
        np.testing.assert_array_equal(path, paths[1])


def test_lbfgs_converges_in_float32_as_in_float64(rng):
    a = (rng.standard_normal((200_000, 4)) * [1, 10, 100, 3]).astype("f4")
    b = a @ np.array([1, 0.5, -0.2, 2], "f4") + 1

    def f(v):
        e = a @ v.astype("f4") - b
        return float((e.astype("f8") ** 2).sum()), (2 * (a.T @ e)).astype(v.dtype)

    low, high = (descend(f, np.zeros(4, t), optimizer="lbfgs", max_iter=200) for t in ("f4", "f8"))
    # f itself rounds each row of a @ v to float32, by about 1e-6 of residuals around 1: the sum of
    # 200,000 squares is off by about 2 * 1e-6 / sqrt(200,000), some 1e-8 with other orders of
    # summation, whatever the point. So the points are compared, by their values in float64.
    exact_a, exact_b = a.astype("f8"), b.astype("f8")

    def exact(v):
        return float(((exact_a @ v.astype("f8") - exact_b) ** 2).sum())

    best = np.linalg.lstsq(exact_a, exact_b, rcond=None)[0]
    assert exact(low.x) / exact(best) - 1 < 1e-9
    np.testing.assert_allclose(low.x, best, rtol=1e-5)
    np.testing.assert_allclose(high.x, best, rtol=1e-5)


def test_a_steep_bowl_is_descended():
    found = descend(lambda x: (1e18 * ((x - 3) ** 2).sum(), 2e18 * (x - 3)), np.zeros(2),
                    optimizer="lbfgs")  # fmt: skip
    np.testing.assert_allclose(found.x, 3, rtol=1e-12)


@pytest.mark.parametrize("optimizer", ["lbfgs", "gd", "momentum", "nesterov", "adam"])
def test_an_objective_that_writes_its_argument_changes_nothing(optimizer):
    def clean(x):
        return ((x - 1) ** 2).sum(), 2 * (x - 1)

    def writes(x):
        x -= 1
        return (x**2).sum(), 2 * x

    start = np.array([5.0, 5.0])
    one, other = (descend(f, start, optimizer=optimizer, max_iter=50) for f in (clean, writes))
    np.testing.assert_array_equal(one.x, other.x)
    assert (start == 5).all()
