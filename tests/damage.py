"""Damaged calls and damaged files: valid ones with one thing wrong, made from a seed.

``python -m tests.damage`` runs many, each kind in a process of its own, and rewrites the table of
docs/reliability.md; the tests run a few. What may happen: a result, or an error of
``fastopt.errors`` (MemoryError where something huge was asked for); never another exception, a
crash, or, where a call was refused, a changed argument.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastopt.calibration import Gram
from fastopt.errors import FastoptError
from fastopt.models import Network
from fastopt.search.engine import Engine
from tests import array_calls, model_calls, search_calls
from tests.array_calls import Call, Rng
from tests.damaged_files import READERS, Outcome, run_mutants, run_states

CALLS = {**array_calls.CALLS, **search_calls.CALLS, **model_calls.CALLS}

# -- one thing wrong -----------------------------------------------------------------------------


def misaligned(a: np.ndarray) -> np.ndarray:
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.setflags(write=False)
    return a


def placed(value: float) -> Callable[[np.ndarray], Any]:
    def put(a: np.ndarray) -> np.ndarray:
        a = a.astype("f8" if a.dtype.kind != "f" else a.dtype)
        if a.size:
            with np.errstate(over="ignore"):
                a.reshape(-1)[a.size // 2] = value
        return a

    return put


def objects(*values: Any) -> Callable[[np.ndarray], Any]:
    def put(a: np.ndarray) -> np.ndarray:
        a = a.astype(object)
        for i, value in enumerate(values):
            if a.size > i:
                a.reshape(-1)[i] = value
        return a

    return put


ARRAY_DAMAGES: list[Callable[[np.ndarray], Any]] = [
    lambda a: a.T,
    lambda a: a[::-1],
    lambda a: np.asfortranarray(a),
    lambda a: a[..., ::2],
    lambda a: a[:-1],
    lambda a: a[:0],
    lambda a: a[..., :0],
    lambda a: a[None],
    lambda a: a.reshape(-1),
    lambda a: a.reshape(-1)[0] if a.size else a,
    lambda a: np.concatenate([a, a]) if a.ndim else a,
    misaligned,
    read_only,
    lambda a: a.astype(a.dtype.newbyteorder()),
    lambda a: a.astype("f2"),
    lambda a: a.astype("f8"),
    lambda a: a.astype("i8"),
    lambda a: a.astype("u1"),
    lambda a: a.astype(bool),
    lambda a: a.astype(complex),
    lambda a: a.astype("U9"),
    lambda a: a.astype("S9"),
    lambda a: a.astype("i8").astype("M8[s]"),
    lambda a: a.astype("i8").astype("m8[s]"),
    lambda a: np.zeros(a.shape, "f4,i4"),
    lambda a: np.longdouble(a),
    objects(),
    objects(None),
    objects("x"),
    objects(np.nan),
    objects(1j, 10**400),
    objects({}, []),
    placed(np.nan),
    placed(np.inf),
    placed(-np.inf),
    placed(-0.0),
    placed(5e-324),
    placed(1e-45),
    placed(3e38),
    placed(-1e308),
    placed(1e30),
    placed(-1.0),
    lambda a: a * 0,
    lambda a: np.full_like(a, 127),
    lambda a: a.tolist(),
    lambda a: tuple(a.tolist()) if a.ndim else a,
    lambda a: [a.tolist(), 1],
    lambda a: np.ma.masked_array(a, a > 0),
    lambda a: [np.ma.masked_array(a, a > 0)],
    lambda a: np.asmatrix(a) if a.ndim <= 2 else a,
    lambda a: memoryview(np.ascontiguousarray(a)),
    lambda a: a.tobytes(),
    lambda a: iter(a.reshape(-1)),
    lambda a: {"a": a},
    lambda a: [a, a],
    lambda a: type("Sub", (np.ndarray,), {})(a.shape, a.dtype),
]
SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 10**6, 2**40, 2**63, -(2**63), 2**64, 10**30, 10**400, 0.5,
    1.5, -0.0, 1e-17, 5e-324, 1e308, float("nan"), float("inf"), -float("inf"), "x", "", "int8",
    "7", "q99.1", "q" + "9" * 5000 + ".1", b"x", [], (), {}, [1], (0.5,), {"a": 1}, 1j, object(),
    np.float32(0.5), np.int64(3), np.bool_(True), np.ones(1), np.ones(3), np.array(2),
    np.ma.masked, np.datetime64("2020"), np.timedelta64(3), datetime.date(2020, 1, 1),
    np.random.default_rng(0), lambda *a: None, Ellipsis, "1:2", "4x1", "mean",
]  # fmt: skip


# Options that say how much is done: a large number is valid, and takes its time.
WORK = ("retrain_epochs", "epochs", "candidates", "workers")


def damaged(call: Call, rng: Rng) -> Call:
    """The call with one argument, seldom two, replaced."""
    args, options = list(call.args), dict(call.options)
    places: list[Any] = [*range(len(args)), *options]
    others = [a for a in args if isinstance(a, np.ndarray)]
    for _ in range(1 if rng.random() < 0.9 else 2):
        place = places[rng.integers(len(places))] if places else None
        holder: Any = args if isinstance(place, int) else options
        if place is not None:
            found = damaged_value(holder[place], others, rng)
            endless = (
                place in WORK and isinstance(found, (int, np.integer)) and 99 < found < 1 << 63
            )
            holder[place] = None if endless else found
    return Call(call.function, args, options, call.written)


def damaged_value(value: Any, others: list[np.ndarray], rng: Rng) -> Any:
    """An array changed, a part of a list or dict replaced, or something else altogether."""
    if isinstance(value, np.ndarray) and rng.random() < 0.85:
        damage = ARRAY_DAMAGES[rng.integers(len(ARRAY_DAMAGES))]
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(Exception):  # not every damage fits every array
                return damage(value)
        return value
    if isinstance(value, np.ndarray) and others and rng.random() < 0.5:
        return others[rng.integers(len(others))]
    if type(value) in (list, tuple, dict) and len(value) > 0 and rng.random() < 0.7:
        return damaged_part(value, others, rng)
    return SCALARS[rng.integers(len(SCALARS))]


def damaged_part(value: Any, others: list[np.ndarray], rng: Rng) -> Any:
    """A copy of a list, tuple or dict with one part damaged, left out, doubled or renamed."""
    parts = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    place = list(parts)[rng.integers(len(parts))]
    what = rng.random()
    if what < 0.1:
        del parts[place]
    elif what < 0.2:
        parts[SCALARS[rng.integers(16)] if what < 0.15 else f"{place}x"] = parts[place]
    else:
        parts[place] = damaged_value(parts[place], others, rng)
    return parts if isinstance(value, dict) else type(value)(parts.values())


def digest(value: Any) -> Any:
    """What an argument holds, to see a change of it."""
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return [id(v) for v in np.asarray(value).reshape(-1)]
        return hashlib.sha1(np.ascontiguousarray(np.asarray(value)).tobytes()).hexdigest()
    if isinstance(value, (list, tuple)):
        return [digest(v) for v in value]
    if isinstance(value, dict):
        return {k: digest(v) for k, v in value.items()}
    if isinstance(value, Gram):
        return value.count, digest(value.second)
    if isinstance(value, Engine):
        return repr(value.state_dict())
    if isinstance(value, Network):
        held = [m.held() for m in value._graph.modules.values()]
        return digest(
            [*held, *value.params.items(), *(repr(layer.form) for layer in value.layers.values())]
        )
    if hasattr(value, "keep_units") and not isinstance(value, type):
        return digest([(v.name, repr(v.form), v.weight, v.bias) for v in value.layers.values()])
    return repr(value) if isinstance(value, str) else id(value)


def run_call(seed: int, k: int) -> Outcome:
    """The k-th damaged call of a seed."""
    rng = np.random.default_rng([seed, k])
    names = list(CALLS)
    name = names[int(rng.integers(len(names)))]
    call = damaged(CALLS[name](rng), rng)
    named = {**{str(i): a for i, a in enumerate(call.args)}, **call.options}
    named["self"] = getattr(call.function, "__self__", None)
    before = {key: digest(value) for key, value in named.items()}
    where = f"{name} #{k}"
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            call.function(*call.args, **call.options)
        kind, error = "passed", ""
    except FastoptError as refusal:
        kind, error = "refused", str(refusal)
    except MemoryError:
        kind, error = "refused", "memory"
    except Exception as stranger:
        return Outcome("foreign", f"{where}: {type(stranger).__name__}: {str(stranger)[:150]}")
    after = {key: digest(value) for key, value in named.items()}
    changed = [
        key for key in named
        if before[key] != after[key] and (kind == "refused" or key not in ("self", *call.written))
        and not _shares(named, key, call.written)
    ]  # fmt: skip
    if changed:
        return Outcome("changed", f"{where}: {kind}, argument {changed[0]} ({error[:80]})")
    return Outcome(kind, error)


def _shares(named: dict[str, Any], key: str, written: tuple[str, ...]) -> bool:
    """Whether it is the same object as one that may be written."""
    return any(named.get(w) is named[key] for w in written)


# -- the table -----------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
MARK = "<!-- measured by python -m tests.damage -->"
HEAD = (
    "| | tried | passed | refused by name | crashes | foreign exceptions | "
    "changed or silently wrong | MiB taken |",
    "|---|---|---|---|---|---|---|---|",
)


def _counted(outcomes: Iterator[Outcome]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.kind] = counts.get(outcome.kind, 0) + 1
        if outcome.kind in ("foreign", "changed", "silent"):
            print(outcome.kind, outcome.note, file=sys.stderr)
    return counts


def _child(arguments: list[str]) -> tuple[dict[str, int], bool]:
    """Counts of a process of our own, and whether it crashed."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.damage", *arguments],
        stdout=subprocess.PIPE, text=True, cwd=PAGE.parent.parent, check=False,
    )  # fmt: skip
    counts = dict(part.split("=") for part in done.stdout.split())
    return {k: int(v) for k, v in counts.items()}, done.returncode not in (0, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--mutants", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", help="calls, states, or a reader: run it here and print the counts"
    )
    parser.add_argument("--match", default="", help="rows whose name holds this")
    parser.add_argument(
        "--write", action="store_true", help="put the rows into docs/reliability.md"
    )
    given = parser.parse_args()
    if given.only == "calls":
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # a damaged option may be the name of a file
            counts = _counted(run_call(given.seed, k) for k in range(given.calls))
    elif given.only == "states":
        counts = _counted(run_states(given.seed, given.mutants))
    elif given.only:
        with tempfile.TemporaryDirectory() as folder:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            counts = _counted(run_mutants(given.only, given.seed, given.mutants, Path(folder)))
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            counts["MiB"] = (after - before) >> 10
    if given.only:
        print(*(f"{k}={v}" for k, v in counts.items()))
        wrong = counts.get("foreign", 0) + counts.get("changed", 0) + counts.get("silent", 0)
        sys.exit(2 if wrong else 0)
    start = time.perf_counter()
    numbers = ("--seed", str(given.seed), "--calls", str(given.calls))
    numbers += ("--mutants", str(given.mutants))
    rows = _written()
    for name in ("calls", "states", *READERS):
        what = {"calls": "damaged calls", "states": "damaged states of engines"}.get(
            name, f"damaged files: {name}"
        )
        if given.match not in what:
            continue
        counts, crashed = _child(["--only", name, *numbers])
        total = sum(v for k, v in counts.items() if k != "MiB")
        wrong = counts.get("changed", 0) + counts.get("silent", 0)
        rows[what] = (
            f"| {what} | {total:,} | {counts.get('passed', 0):,} | {counts.get('refused', 0):,} | "
            f"{int(crashed)} | {counts.get('foreign', 0)} | {wrong} | "
            f"{counts.get('MiB', '-')} |"
        )
        print(rows[what], f"{time.perf_counter() - start:.0f} s", flush=True)
        if given.write:
            head, _, _ = PAGE.read_text().partition(MARK)
            PAGE.write_text("\n".join([f"{head}{MARK}\n", *HEAD, *rows.values(), ""]))


def _written() -> dict[str, str]:
    """The rows that the page has, by their names."""
    lines = PAGE.read_text().partition(MARK)[2].splitlines()
    return {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("| d")}


if __name__ == "__main__":
    main()
