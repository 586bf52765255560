"""Minimise a function of one array from its value and gradient: x <- x - t d, until it is flat."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fastopt._arrays import Array, as_array, check_finite
from fastopt._options import choice, function, integer, number, real
from fastopt.errors import DivergedError, DTypeError, OptionError
from fastopt.optim.adam import Adam
from fastopt.optim.line_search import (
    PIECE,
    Evaluate,
    Point,
    armijo,
    dot,
    first_step,
    flatness,
    wolfe,
)
from fastopt.optim.optimizer import Optimizer
from fastopt.optim.sgd import SGD

__all__ = ["DescendResult", "descend"]

# From a function to evaluate, a point, its value and gradient to the points that follow.
Iteration: TypeAlias = "Callable[[Evaluate, Array, float, Array], Iterator[Point]]"

METHODS = ("gd", "momentum", "nesterov", "adam", "lbfgs")
MEMORY = 10  # pairs that L-BFGS keeps
SHORT = 6  # short steps that Barzilai-Borwein keeps
ALIKE = 0.8  # share of its long step from which on the short one counts as as long


@dataclass(frozen=True)
class DescendResult:
    """What :func:`descend` found.

    Attributes
    ----------
    x : ndarray
        The point with the lowest value seen.
    fun : float
        Its value.
    n_iter, n_evals : int
        Iterations done and calls of ``value_and_grad``.
    history : (n_iter + 1,) float64 ndarray
        The value at the start and after each iteration.
    converged : bool
        Whether the largest gradient component fell to ``tol``.
    message : str
        Why it ended.
    elapsed_s : float
        Seconds.
    """

    x: Array
    fun: float
    n_iter: int
    n_evals: int
    history: Array
    converged: bool
    message: str
    elapsed_s: float


def descend(
    value_and_grad: Callable[[Array], tuple[Any, Any]],
    x0: Any,
    *,
    optimizer: str | type[Optimizer] = "gd",
    lr: float | str | None = None,
    max_iter: int = 1000,
    tol: float = 1e-6,
    max_time: float | None = None,
    callback: Callable[[int, Array, float], Any] | None = None,
    **options: Any,
) -> DescendResult:
    """Minimise f: x <- x - t d(grad f(x)) from ``x0`` until max |grad f| <= tol.

    Parameters
    ----------
    value_and_grad : callable
        ``value_and_grad(x) -> (value, gradient)``, the gradient with the shape of ``x``, which
        is a copy of its own.
    x0 : array-like, any shape
        Start; float32 and float64 keep their dtype, other numbers become float64. Not modified.
    optimizer : str or Optimizer class
        ``"gd"`` steepest descent; ``"momentum"`` heavy ball; ``"nesterov"`` accelerated gradient
        with restart; ``"adam"``; ``"lbfgs"`` limited-memory BFGS with a strong Wolfe search; or
        a class of this package, built as ``optimizer(x, lr=lr, **options)``.
    lr : float or str, optional
        Step size. None: ``"backtracking"`` for gd and nesterov, a line search for lbfgs, 0.01 for
        momentum and adam, the class's own default for a class. gd also takes
        ``"backtracking"`` and ``"bb"`` (Barzilai-Borwein).
    max_iter : int
        Iterations at most.
    tol : float
        Largest gradient component, in absolute value, that counts as flat; 0 runs to the end.
    max_time : float, optional
        Seconds at most, looked at between iterations.
    callback : callable, optional
        ``callback(n_iter, x, value)`` after each iteration, with a copy of x; a true result ends
        the run.
    **options
        Further options of the optimizer class (``momentum=0.9``, ``betas=...``), for
        ``"momentum"``, ``"adam"`` and classes. For ``"lbfgs"`` alone ``noise``: the relative error
        of the values, by which one may rise (default 4 roundings of x's dtype; give that of
        float32 where the function computes in it).

    Returns
    -------
    DescendResult

    Raises
    ------
    DivergedError
        The value or gradient at ``x0`` is not finite.
    ArrayError, DTypeError, OptionError

    Notes
    -----
    A later value that is not finite ends the run with the best point so far (fixed steps) or is
    stepped back from (line searches). Deterministic. Sources: backtracking, Armijo 1966; "bb",
    Barzilai and Borwein 1988 with the nonmonotone search of Raydan 1997 and the short steps of
    Frassoldati, Zanni and Zanghirati 2008 (ABBmin); nesterov, Beck and Teboulle 2009 (FISTA) with
    the restarts of O'Donoghue and Candes 2015; lbfgs, the matrix of Byrd, Nocedal and Schnabel
    1994 and Nocedal and Wright 2006, algorithms 3.5 and 3.6.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.optim import descend
    >>> a = np.array([1.0, 10.0])
    >>> res = descend(lambda x: (0.5 * a @ x**2, a * x), [3.0, -4.0], optimizer="lbfgs")
    >>> res.converged, res.fun < 1e-12
    (True, True)
    """
    start = time.perf_counter()
    x = np.array(as_array(x0, "x0", cast="float64"), order="C", copy=True)
    check_finite(x, "x0")
    max_iter = integer(max_iter, "max_iter", low=0)
    tol = number(tol, "tol", low=0.0)
    if callback is not None:
        function(callback, "callback")
    budget_s = math.inf if max_time is None else number(max_time, "max_time", low=0.0)
    counted = _Counted(value_and_grad, x.shape, x.dtype)
    make = _method(optimizer, lr, options)
    x, f, g = counted(x)
    flat = flatness(g)
    if not (math.isfinite(f) and math.isfinite(flat)):
        raise DivergedError(f"value_and_grad: value {f} or its gradient at x0 is not finite")
    best, best_f, history = x, f, [f]
    message = f"reached max_iter={max_iter}"
    iterations = make(counted, x, f, g)
    while True:
        if flat <= tol:
            return _result(
                best, best_f, counted, history, True, f"max |gradient| <= tol={tol:g}", start
            )
        if len(history) > max_iter:
            break
        if time.perf_counter() - start >= budget_s:
            message = f"reached max_time={budget_s:g} s"
            break
        point = next(iterations, None)
        if point is None:
            message = "no step lowers the value any further at this precision"
            break
        x, f, g = point
        flat = flatness(g)
        if not (math.isfinite(f) and math.isfinite(flat)):
            message = "the value or gradient became NaN or infinite: try a smaller lr"
            break
        history.append(f)
        if f <= best_f:
            best_f, best = f, x
        if callback is not None and callback(len(history) - 1, x.copy(), f):
            message = "stopped by callback"
            break
    return _result(best, best_f, counted, history, False, message, start)


class _Counted:
    """The user's function, its results checked, its gradient copied, its calls counted."""

    def __init__(self, f: Callable[[Array], Any], shape: Any, dtype: Any) -> None:
        self.function = function(f, "value_and_grad")
        self.shape, self.dtype, self.calls = shape, dtype, 0

    def __call__(self, x: Array) -> Point:
        self.calls += 1
        result = self.function(x.copy())
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise DTypeError("value_and_grad: expected to get (value, gradient) back")
        value, gradient = result
        f = real(value, "value_and_grad's value")
        if not (
            type(gradient) is np.ndarray
            and gradient.dtype == self.dtype
            and gradient.shape == self.shape
        ):
            gradient = as_array(
                gradient, "value_and_grad's gradient", cast="float64", shape=self.shape
            )
        return x, f, np.array(gradient, self.dtype, order="C", copy=True)


def _result(
    x: Array, f: float, counted: _Counted, history: list[float], ok: bool, why: str, start: float
) -> DescendResult:
    return DescendResult(
        x,
        f,
        len(history) - 1,
        counted.calls,
        np.fromiter(history, np.float64),
        ok,
        why,
        time.perf_counter() - start,
    )


def _method(
    optimizer: str | type[Optimizer], lr: float | str | None, options: dict[str, Any]
) -> Iteration:
    """The iteration as a generator of points; options are checked here, before any evaluation."""
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        factory: type[Optimizer] = optimizer
        name = "class"
    else:
        name = choice(optimizer, "optimizer", METHODS)
        factory = SGD if name == "momentum" else Adam
    if name in ("class", "momentum", "adam"):
        if name == "momentum":
            options = {"momentum": 0.9, **options}
        if name != "class" and lr is None:
            lr = 0.01
        if lr is not None:
            options = {"lr": number(lr, "lr", low=0.0), **options}
        try:
            factory(np.zeros(1), **options)
        except TypeError as error:
            raise OptionError(f"options: {error}") from None
        return lambda evaluate, x, f, g: _stepped(evaluate, x, g, factory, options)
    noise = options.pop("noise", None) if name == "lbfgs" else None
    if options:
        raise OptionError(f"{next(iter(options))}: optimizer={name!r} has no such option")
    if name == "lbfgs":
        if lr is not None:
            raise OptionError("lr: lbfgs finds its step by a line search; leave lr out")
        share = None if noise is None else number(noise, "noise", low=0.0)
        return _in_own_unit(lambda evaluate, x, f, g: _lbfgs(evaluate, x, f, g, share))
    if lr is None or isinstance(lr, str):
        rule = choice(lr or "backtracking", "lr", ("backtracking", "bb"))
        if name == "nesterov":
            choice(rule, "lr", ("backtracking",))
            return _in_own_unit(_nesterov_search)
        return _in_own_unit(_barzilai_borwein if rule == "bb" else _backtracking)
    step = number(lr, "lr", low=0.0, low_open=True)
    if name == "nesterov":
        return lambda evaluate, x, f, g: _nesterov_fixed(evaluate, x, g, step)
    return lambda evaluate, x, f, g: _fixed(evaluate, x, g, step)


def _in_own_unit(iterate: Iteration) -> Iteration:
    """The iteration on f / u, u a power of two that makes the first gradient's largest component
    0.5 to 1: its path does not depend on the unit of f, and float32 products stay in range."""

    def scaled(evaluate: Evaluate, x: Array, f: float, g: Array) -> Iterator[Point]:
        reach = min(100, np.finfo(x.dtype).maxexp - 28)  # a factor of 2**reach loses nothing
        power = max(-reach, min(reach, math.frexp(flatness(g))[1]))
        down, up = x.dtype.type(2.0**-power), x.dtype.type(2.0**power)

        def inner(at: Array) -> Point:
            at, value, gradient = evaluate(at)
            gradient *= down  # the copy that was made for us
            return at, value * 2.0**-power, gradient

        for at, value, gradient in iterate(inner, x, f * 2.0**-power, g * down):
            yield at, value * 2.0**power, gradient * up

    return scaled


def _stepped(
    evaluate: Evaluate, x: Array, g: Array, factory: type[Optimizer], options: dict[str, Any]
) -> Iterator[Point]:
    """An optimiser of this package, in place on an array of its own."""
    at = x.copy()
    opt = factory(at, **options)
    while True:
        opt.step(g)
        x, f, g = evaluate(at.copy())
        yield x, f, g


def _fixed(evaluate: Evaluate, x: Array, g: Array, t: float) -> Iterator[Point]:
    while True:
        x, f, g = evaluate(x - x.dtype.type(t) * g)
        yield x, f, g


def _backtracking(evaluate: Evaluate, x: Array, f: float, g: Array) -> Iterator[Point]:
    t = first_step(x, g)
    while True:
        found = armijo(evaluate, x, f, g, t)
        if found is None:
            return
        (x, f, g), t = found
        yield x, f, g
        t *= 2.0  # let the step grow again where the function is flatter


def _barzilai_borwein(evaluate: Evaluate, x: Array, f: float, g: Array) -> Iterator[Point]:
    """Steps s's/s'y, or the smallest of the last s'y/y'y where the two differ (ABBmin); accepted
    against the worst of the last ten values."""
    t, recent = first_step(x, g), [f]
    short: list[float] = []
    while True:
        found = armijo(evaluate, x, max(recent), g, t)
        if found is None:
            return
        (x_new, f, g_new), _ = found
        yield x_new, f, g_new
        s, y = x_new - x, g_new - g
        curvature, square = dot(s, y), dot(y, y)
        if curvature > 0 and square > 0:
            t = min(max(dot(s, s) / curvature, 1e-10), 1e10)
            short = [*short[1 - SHORT :], min(max(curvature / square, 1e-10), 1e10)]
            if short[-1] < ALIKE * t:
                t = min(short)
        else:  # negative curvature says nothing about the step; take a long one
            t, short = first_step(x_new, g_new), []
        x, g, recent = x_new, g_new, [*recent[-9:], f]


def _nesterov_fixed(evaluate: Evaluate, x: Array, g: Array, t: float) -> Iterator[Point]:
    """One evaluation per iteration, at the extrapolated point, which is the one returned."""
    y, theta, dt = x, 1.0, x.dtype.type
    while True:
        x_new = y - dt(t) * g
        if dot(g, x_new - x) > 0:  # the momentum points uphill: restart
            theta = 1.0
        theta_new = (1.0 + math.sqrt(1.0 + 4.0 * theta * theta)) / 2.0
        y, f, g = evaluate(x_new + dt((theta - 1.0) / theta_new) * (x_new - x))
        x, theta = x_new, theta_new
        yield y, f, g


def _nesterov_search(evaluate: Evaluate, x: Array, f: float, g: Array) -> Iterator[Point]:
    """FISTA's test for the step; two evaluations per iteration where there is momentum."""
    y, f_y, g_y, theta, dt = x, f, g, 1.0, x.dtype.type
    t = first_step(x, g)
    while True:
        slack = 4 * float(np.finfo(x.dtype).eps) * abs(f_y)
        slope = dot(g_y, g_y)
        for _ in range(60):
            x_new, f_new, g_new = evaluate(y - dt(t) * g_y)
            if f_new <= f_y - 0.5 * t * slope + slack and np.isfinite(g_new).all():
                break
            t *= 0.5
        else:
            if theta == 1.0:
                return
            y, f_y, g_y, theta = x, f, g, 1.0
            continue
        if f_new > f and theta > 1.0:  # worse than before: restart from the last point
            y, f_y, g_y, theta = x, f, g, 1.0
            continue
        if f_new >= f and np.array_equal(x_new, x):
            return
        theta_new = (1.0 + math.sqrt(1.0 + 4.0 * theta * theta)) / 2.0
        weight = (theta - 1.0) / theta_new
        step = x_new - x
        x, f, g, theta = x_new, f_new, g_new, theta_new
        yield x, f, g
        t *= 1.1
        y, f_y, g_y = (x, f, g) if weight == 0.0 else evaluate(x + dt(weight) * step)
        if not (math.isfinite(f_y) and np.isfinite(g_y).all()):
            y, f_y, g_y, theta = x, f, g, 1.0


def _lbfgs(
    evaluate: Evaluate, x: Array, f: float, g: Array, noise: float | None
) -> Iterator[Point]:
    noise = 4 * float(np.finfo(x.dtype).eps) if noise is None else noise
    pairs, d, t = _Pairs(x), -g, _first_trial(x, f, g)
    while True:
        slope = dot(g, d)
        found = wolfe(evaluate, x, f, d, slope, t, noise) if slope < 0 else None
        if found is None:
            if not pairs.inverse.any():
                return
            pairs.inverse[:] = 0.0  # drop the misleading curvature and try again
            d, t = -g, _first_trial(x, f, g)
            continue
        yield found
        d = pairs.direction(x, g, found[0], found[2])
        (x, f, g), t = found, 1.0


def _first_trial(x: Array, f: float, g: Array) -> float:
    """A step along -g: to the minimum of a sphere function whose least value is 0, if that moves
    no component by more than 1 or its own size."""
    slope = dot(g, g)
    guess = 2.0 * abs(f) / slope if slope > 0 else 0.0
    return min(guess or math.inf, first_step(x, g))


class _Pairs:
    """The last steps s and changes of the gradient y, and the direction -H g that they give.

    H = w I + [S, w Y] [[R^-T (D + w Y'Y) R^-1, -R^-T], [-R^-1, 0]] [S, w Y]' with D = diag(s'y),
    R = the part of S'Y where s is not younger than y, w = s'y / y'y of the youngest pair (Byrd,
    Nocedal and Schnabel 1994, eq. 3.1): the matrix of the two loops, in two passes over the pairs
    and a gradient. R^-1 is kept: a new pair adds a column to it, the oldest leaves with its row
    and column. Pairs lie in slots used in turn, and all matrices are permuted alike.
    """

    def __init__(self, x: Array) -> None:
        self.rows = np.zeros((2 * MEMORY + 1, x.size), x.dtype)  # S, Y, g
        self.inverse = np.zeros((MEMORY, MEMORY))  # R^-1; zeros for missing pairs
        self.yy, self.sy = np.zeros((MEMORY, MEMORY)), np.zeros(MEMORY)
        # coefficients of the rows, twice: BLAS leaves a product of two with them to one thread
        self.share = np.zeros((2, 2 * MEMORY + 1), x.dtype)
        self.weight, self.slot, self.eps = 1.0, 0, float(np.finfo(x.dtype).eps)

    def direction(self, x: Array, g: Array, x_new: Array, g_new: Array) -> Array:
        """Take in the step from x to x_new; -H g_new."""
        m, k, r, rows = MEMORY, self.slot, self.inverse, self.rows
        np.subtract(x_new.ravel(), x.ravel(), out=rows[k])
        np.subtract(g_new.ravel(), g.ravel(), out=rows[m + k])
        rows[2 * m] = g_new.ravel()
        parts = [slice(i, i + PIECE) for i in range(0, x.size, PIECE)]
        both = np.zeros((len(rows), 2))  # with y and g
        for i in parts:
            both += rows[:, i] @ rows[m + k :: m - k, i].T
        y, by_g = both.T
        r[k] = r[:, k] = 0.0
        if y[k] > self.eps * math.sqrt(dot(rows[k], rows[k]) * y[m + k]):
            r[:, k] = r @ y[:m] / -y[k]
            r[k, k] = 1.0 / y[k]
            self.yy[k] = self.yy[:, k] = y[m:-1]
            self.sy[k], self.weight, self.slot = y[k], y[k] / y[m + k], (k + 1) % m
        w, u = self.weight, r @ by_g[:m]
        self.share[:, :m] = (w * (by_g[m:-1] - self.yy @ u) - self.sy * u) @ r
        self.share[:, m:-1] = w * u
        self.share[:, -1] = -w
        d: Array = np.empty(x.shape, x.dtype)
        flat = d.reshape(-1)
        for i in parts:
            flat[i] = (self.share @ rows[:, i])[0]
        return d
