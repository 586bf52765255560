"""Journals and executors: nothing acknowledged is lost, and the sequence stays the same."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fastopt.errors import DTypeError, FormatError, OptionError, StorageError
from fastopt.search import Bool, Choice, Float, Genetic, Int, Space, minimize
from fastopt.search.evaluation import Outcome
from fastopt.search.journal import Journal

SPACE = Space(x=Float(-2, 2), n=Int(1, 9), kind=Choice("a", "b"), flag=Bool())
HEADER = {"space": "s", "key": 1}

WORKER = """
import sys
from fastopt.search import Bool, Choice, Float, Int, Space, minimize
space = Space(x=Float(-2, 2), n=Int(1, 9), kind=Choice("a", "b"), flag=Bool())
def f(x, n, kind, flag):
    return (x - 0.5) * (x - 0.5) + abs(n - 4) + (kind == "a") + flag
def told(p):
    print("ack", p.n_evals, flush=True)
minimize(f, space, method=sys.argv[2], max_evals=int(sys.argv[3]), seed=7, storage=sys.argv[1],
         batch_size=5, callback=told)
print("end", flush=True)
"""


def trial(number, y, message=None):
    """A trial as the journal takes it."""
    return number, np.array([0.5, number]), Outcome(y, message=message), None


def stored(journal):
    """What a journal holds: number -> (objective, message)."""
    return {n: (r.outcome.y, r.outcome.message) for n, r in journal.trials.items()}


def objective(x, n, kind, flag):
    return (x - 0.5) * (x - 0.5) + abs(n - 4) + (kind == "a") + flag


def failing(x, n, kind, flag):
    if n == 3:
        raise ValueError("three")
    return float("nan") if n == 5 else x


@pytest.mark.parametrize("method", ["random", "greedy", "genetic"])
def test_continued_equals_uninterrupted(tmp_path, method):
    plain = minimize(objective, SPACE, method=method, max_evals=120, seed=3, batch_size=7)
    calls = []

    def counted(x, n, kind, flag):
        calls.append(1)
        return objective(x, n, kind, flag)

    path = tmp_path / "j"
    for stop in (10, 33, 33, 120):
        res = minimize(
            counted,
            SPACE,
            method=method,
            max_evals=120,
            seed=3,
            batch_size=7,
            storage=path,
            callback=lambda p, stop=stop: p.n_evals >= stop,
        )
        assert res.n_evals >= stop
    assert len(calls) == 120  # no trial was evaluated twice
    assert res.history.tobytes() == plain.history.tobytes()
    assert res.x == plain.x
    assert np.array_equal(res.values, plain.values)


def test_a_larger_budget_continues_the_same_search(tmp_path):
    runs = [
        minimize(objective, SPACE, method="genetic", max_evals=n, storage=tmp_path / "j")
        for n in (37, 300, 40)
    ]
    assert [r.n_evals for r in runs] == [37, 300, 40]
    for r in runs:
        assert r.history.tobytes() == runs[1].history[: r.n_evals].tobytes()


def test_failed_trials_are_kept(tmp_path):
    path = tmp_path / "j"
    with pytest.raises(ValueError, match="three"):
        minimize(failing, SPACE, method="random", max_evals=60, storage=path)
    first = minimize(failing, SPACE, method="random", max_evals=60, storage=path, on_error="skip")
    again = minimize(
        lambda **k: 1 / 0, SPACE, method="random", max_evals=60, storage=path, on_error="skip"
    )
    assert first.history.tobytes() == again.history.tobytes()
    assert first.errors == again.errors
    assert "ValueError: three" in first.errors.values()


def test_vectorised_with_storage(tmp_path):
    space = Space(a=Float(-1, 1), b=Float(-1, 1))
    runs = []
    for budget in (70, 200):
        runs.append(
            minimize(
                lambda v: (v * v).sum(axis=1),
                space,
                method="genetic",
                max_evals=budget,
                vectorized=True,
                storage=tmp_path / "j",
            )
        )
    plain = minimize(
        lambda v: (v * v).sum(axis=1), space, method="genetic", max_evals=200, vectorized=True
    )
    assert runs[1].history.tobytes() == plain.history.tobytes()


@pytest.mark.parametrize("method", ["genetic", "greedy"])
def test_kill_9_loses_nothing(tmp_path, method):
    path = tmp_path / "j"
    rng = random.Random(method)
    script = [sys.executable, "-c", WORKER, str(path), method, "400"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    most, kills, ended = 0, 0, False
    for _ in range(6):
        worker = subprocess.Popen(script, stdout=subprocess.PIPE, text=True, env=env)
        target = most + rng.randint(5, 60)
        for text in worker.stdout:
            if text.startswith("end"):
                ended = True
                break
            most = max(most, int(text.split()[1]))
            if most >= target:
                worker.send_signal(signal.SIGKILL)
                kills += 1
                break
        worker.stdout.close()
        worker.wait()
        kept = Journal(path, header_of(path))
        assert sorted(kept.trials) == list(range(len(kept.trials)))
        assert len(kept.trials) >= most  # every acknowledged trial is there
        kept.close()
        if ended:
            break
    assert kills >= 3
    res = minimize(
        objective, SPACE, method=method, max_evals=400, seed=7, batch_size=5, storage=path
    )
    plain = minimize(objective, SPACE, method=method, max_evals=400, seed=7, batch_size=5)
    assert res.history.tobytes() == plain.history.tobytes()


def header_of(path):
    import json

    record = json.loads(path.read_bytes().split(b"\n", 1)[0][9:])
    record.pop("format")
    return record


def test_cut_at_every_byte(tmp_path):
    path = tmp_path / "j"
    journal = Journal(path, HEADER)
    records = [trial(0, 1.5), trial(1, float("nan"), "ValueError: x"), trial(2, -0.0)]
    for record in records:
        journal.append([record])
    journal.close()
    whole = path.read_bytes()
    ends = [m.end() for m in re.finditer(b"\n", whole)]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        journal = Journal(path, HEADER)
        kept = sum(e <= cut for e in ends[1:])
        assert sorted(journal.trials) == list(range(kept))
        journal.append([trial(kept, 9.0)])
        journal.close()
        journal = Journal(path, HEADER)
        assert stored(journal)[kept] == (9.0, None)
        journal.close()


def test_every_flipped_bit_before_the_last_record_is_seen(tmp_path):
    path = tmp_path / "j"
    journal = Journal(path, HEADER)
    journal.append([trial(i, float(i)) for i in range(3)])
    journal.close()
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for byte in range(last):
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << (byte % 8)
        path.write_bytes(damaged)
        with pytest.raises(FormatError):
            Journal(path, HEADER)
        assert path.read_bytes() == damaged


def test_other_searches_are_refused(tmp_path):
    path = tmp_path / "j"
    minimize(objective, SPACE, method="genetic", max_evals=20, storage=path)
    before = path.read_bytes()
    for other in (
        {"seed": 1},
        {"method": "greedy"},
        {"batch_size": 3},
        {"x0": {"x": 0.0, "n": 1, "kind": "a", "flag": True}},
    ):
        args = {"method": "genetic", "max_evals": 20, "storage": path, **other}
        with pytest.raises(FormatError, match="belongs to another search"):
            minimize(objective, SPACE, **args)
    with pytest.raises(FormatError):
        minimize(lambda t: 0, Space(z=Bool()), method="genetic", max_evals=20, storage=path)
    assert path.read_bytes() == before
    path.write_text("hello, this is a text file\nof two lines\n")
    with pytest.raises(FormatError):
        minimize(objective, SPACE, storage=path)
    assert path.read_text().startswith("hello")
    with pytest.raises(OptionError):
        minimize(objective, SPACE, storage=tmp_path / "k", seed=None)
    with pytest.raises(StorageError):
        minimize(objective, SPACE, storage=tmp_path / "no" / "folder")


HEADERS = (
    b'{"format":"fastopt journal 2","options":3}',
    b'{"format":"fastopt journal 2","batch":"x"}',
    b'{"format":"fastopt journal 2","batch":-5,"options":{}}',
    b'{"format":"fastopt journal 2","batch":1,"own_batch":0}',
    b"[" * 100_000,
)
TRIALS = (
    b'{"trial":3,"x":"0123456789abcdef","y":"0x1p99999"}',
    b'{"trial":-1,"x":"0123456789abcdef","y":"0x1p0"}',
    b'{"trial":36893488147419103232,"x":"0123456789abcdef","y":"0x1p0"}',
    b'{"trial":3,"x":"0123456789abcdef","y":["0x1p0","0x1p0"]}',
    b'{"trial":3,"x":"0123456789abcdef","y":["0x1p0"]}',
    b'{"trial":3,"x":3,"y":"0x1p0"}',
    b'{"forget":true}',
)


@pytest.mark.parametrize("record", [*HEADERS, *TRIALS], ids=lambda r: r[:60].decode())
def test_records_that_are_forged_with_a_right_checksum_are_refused(tmp_path, record):
    path = tmp_path / "j"
    line = b"%08x %b\n" % (zlib.crc32(record), record)
    if record in TRIALS:
        minimize(lambda a: a, {"a": Float(0, 1)}, max_evals=3, storage=path)
        line = path.read_bytes() + line
    path.write_bytes(line)
    with pytest.raises(FormatError):
        minimize(lambda a: a, {"a": Float(0, 1)}, max_evals=9, storage=path)
    assert path.read_bytes() == line


def test_one_writer(tmp_path):
    held = Journal(tmp_path / "j", HEADER)
    with pytest.raises(StorageError, match="in use"):
        Journal(tmp_path / "j", HEADER)
    held.close()
    Journal(tmp_path / "j", HEADER).close()


def test_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "j"
    journal = Journal(path, HEADER)
    journal.append([trial(0, 1.0)])
    size, real = path.stat().st_size, os.pwrite

    def half(file, data, offset):
        if len(data) > 4:
            return real(file, data[:4], offset)  # a short write, then no room
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(StorageError, match="No space"):
        journal.append([trial(1, 2.0)])
    assert path.stat().st_size == size
    monkeypatch.undo()
    journal.append([trial(1, 2.0)])
    journal.close()
    journal = Journal(path, HEADER)
    assert stored(journal) == {0: (1.0, None), 1: (2.0, None)}
    journal.close()


# --- executors


@pytest.mark.parametrize("method", ["random", "greedy", "genetic", "auto"])
def test_any_number_of_workers_gives_the_same_trials(method):
    plain = minimize(objective, SPACE, method=method, max_evals=150, seed=2)
    for workers in (1, 2, 4):
        with ThreadPoolExecutor(workers) as pool:
            res = minimize(objective, SPACE, method=method, max_evals=150, seed=2, executor=pool)
        assert res.history.tobytes() == plain.history.tobytes()
        assert res.x == plain.x


def test_processes_and_failures(tmp_path):
    plain = minimize(failing, SPACE, method="random", max_evals=60, on_error="skip")
    with ProcessPoolExecutor(2) as pool:
        res = minimize(
            failing,
            SPACE,
            method="random",
            max_evals=60,
            on_error="skip",
            executor=pool,
            storage=tmp_path / "j",
        )
        assert res.history.tobytes() == plain.history.tobytes()
        assert res.errors == plain.errors
        with pytest.raises(ValueError, match="three"):
            minimize(failing, SPACE, method="random", max_evals=60, executor=pool)
    again = minimize(
        failing, SPACE, method="random", max_evals=60, on_error="skip", storage=tmp_path / "j"
    )
    assert again.history.tobytes() == plain.history.tobytes()


def test_time_budget_with_an_executor():
    with ThreadPoolExecutor(2) as pool:
        start = time.monotonic()
        res = minimize(
            lambda t: time.monotonic() and 1.0,
            SPACE,
            max_evals=None,
            max_time=0.2,
            method="random",
            executor=pool,
        )
        assert time.monotonic() - start < 5
        assert "max_time" in res.message
        assert res.n_evals > 0


def test_executor_refusals():
    with pytest.raises(DTypeError):
        minimize(objective, SPACE, executor=3)
    with ThreadPoolExecutor(1) as pool, pytest.raises(OptionError):
        minimize(objective, SPACE, executor=pool, vectorized=True)


def test_engine_given(tmp_path):
    engine = Genetic(SPACE, population=9, seed=4)
    res = minimize(objective, SPACE, method=engine, max_evals=50, storage=tmp_path / "j")
    assert engine.n_told == res.n_evals == 50
    assert engine.fun == res.fun
