"""What people see of a search: pictures, importance, reports, ``fastopt search`` and ``watch``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import fastopt
from fastopt import report
from fastopt.cli import main
from fastopt.errors import FormatError, OptionError, UnsupportedError
from fastopt.search import (
    Bool,
    Choice,
    Float,
    Int,
    Permutation,
    Space,
    Vector,
    load_result,
    minimize,
)

SPACE = Space(
    lr=Float(1e-4, 1, log=True),
    act=Choice("relu", "<tanh>"),
    slope=Float(0, 1, when={"act": "relu"}),
    n=Int(1, 9),
    flag=Bool(),
    mix=Vector(2, 0, 1),
    order=Permutation(3),
)


def cost(t):
    return 10 * abs(np.log10(t["lr"]) + 2) + (t["act"] == "relu") + 0.01 * t["n"]


@pytest.fixture(scope="module")
def result():
    return minimize(cost, SPACE, method="random", max_evals=200)


def test_importance_finds_what_matters(result):
    shares = result.importance()
    assert list(shares) == sorted(shares, key=shares.get, reverse=True)
    assert next(iter(shares)) == "lr"
    assert shares["lr"] > 0.6
    assert shares["order"] < 0.1
    assert sum(shares.values()) == pytest.approx(1)
    assert shares == result.importance()
    flat = minimize(lambda t: 1.0, SPACE, method="random", max_evals=50)
    assert set(flat.importance().values()) == {0.0}
    high = minimize(lambda t: -cost(t), SPACE, method="random", max_evals=200, maximize=True)
    assert high.importance() == shares


@pytest.mark.parametrize("kind", ["history", "slices", "contour", "parallel", "importance"])
def test_pictures(result, kind):
    svg = ElementTree.fromstring(result.plot(kind, width=600, height=300))
    marks = [e for e in svg.iter() if e.tag.rpartition("}")[2] in ("circle", "rect", "polyline")]
    assert len(marks) >= 7
    text = " ".join("".join(e.itertext()) for e in svg.iter() if e.tag.endswith("text"))
    assert "random: 200 trials" in text
    if kind == "slices":
        assert "<tanh>" in text  # escaped on its way
        circles = [e for e in marks if e.tag.endswith("circle")]
        relu = sum(a == "relu" for a in result.trials["act"])
        assert len(circles) == 200 * 6 + relu  # slope is shown where it is active
    if kind == "parallel":
        assert len([e for e in marks if e.tag.endswith("polyline")]) == 200
    figures = pytest.importorskip("matplotlib.figure")
    figure = result.plot(kind, backend="matplotlib")
    assert isinstance(figure, figures.Figure)
    assert figure.axes
    figure.canvas.draw()


def test_a_chosen_contour_and_refusals(result):
    ElementTree.fromstring(result.plot("contour", x="lr", y="act"))
    for options in (
        {"kind": "pie"},
        {"kind": "contour", "x": "lr", "y": "order"},
        {"kind": "contour", "x": "lr", "y": "lr"},
        {"kind": "history", "x": "lr"},
        {"kind": "pareto"},
        {"backend": "ascii"},
        {"width": 1},
    ):
        with pytest.raises(OptionError):
            result.plot(**options)


def test_report_is_one_file(result, tmp_path):
    report.write_search(result, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "&lt;tanh&gt;" in page or result.x["act"] == "relu"
    assert page.count("<svg") == 4
    assert "http://" not in page.replace("http://www.w3.org", "")
    failed = minimize(lambda t: float("nan"), SPACE, max_evals=3)
    report.write_search(failed, tmp_path / "f.html")
    assert "No trial gave a value" in (tmp_path / "f.html").read_text()


def test_a_journal_is_a_result(tmp_path):
    res = minimize(
        lambda t: (-cost(t), [t["n"] - 4]),
        SPACE,
        max_evals=60,
        maximize=True,
        constraints=1,
        storage=tmp_path / "j",
    )
    seen = load_result(tmp_path / "j")
    assert (seen.fun, seen.n_evals, seen.violation) == (res.fun, res.n_evals, res.violation)
    assert seen.history.tobytes() == res.history.tobytes()
    assert np.array_equal(seen.values, res.values)
    assert str(seen.x) == str(res.x)
    odd = Space(c=Choice(abs, 1))
    minimize(lambda c: 0.0, odd, max_evals=2, storage=tmp_path / "k")
    with pytest.raises(UnsupportedError, match="pass space="):
        load_result(tmp_path / "k")
    assert load_result(tmp_path / "k", odd).n_evals == 2
    with pytest.raises(FormatError, match="another space"):
        load_result(tmp_path / "j", odd)
    (tmp_path / "l").write_text("hello\n")
    with pytest.raises(FormatError):
        load_result(tmp_path / "l")


# --- the command line

MODULE = """
import math, time
def bowl(x, n): return (x - 0.5) ** 2 + abs(n - 3)
def slow(x, n): time.sleep(0.05); return x
def bad(x, n): return math.nan
number = 3
"""
SPACE_JSON = {
    "x": {"type": "float", "low": 0, "high": 1},
    "n": {"type": "int", "low": 1, "high": 9},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work_of_mine.py").write_text(MODULE)
    (tmp_path / "space.json").write_text(json.dumps(SPACE_JSON))
    yield tmp_path
    sys.modules.pop("work_of_mine", None)
    sys.path[:] = [p for p in sys.path if p != str(tmp_path)]


def fast(*arguments, code=0):
    command = [sys.executable, "-m", "fastopt", *map(str, arguments)]
    env = {"PYTHONPATH": str(Path(fastopt.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == code, done.stderr + done.stdout
    return done


def test_search_and_watch(folder):
    args = ["search", "work_of_mine:bowl", "--space", "space.json", "--storage", "run.journal"]
    args += ["--method", "genetic"]
    out = fast(*args, "--workers", 2, "--evals", 60, "--report", "r.html", "--json")
    facts = json.loads(out.stdout)
    assert facts["n_evals"] == 60
    assert facts["x"]["n"] == 3
    assert out.stderr == ""  # no progress where there is no terminal
    assert (folder / "r.html").read_text().startswith("<!doctype html>")
    longer = fast(*args, "--evals", 80)
    assert "80 evaluations" in longer.stdout
    seen = fast("watch", "run.journal", "--once").stdout
    assert seen.startswith("80 trials  best ")
    assert json.loads(seen[seen.index("{") :])["n"] == 3
    fast("watch", "run.journal", "--report", "w.html")
    assert (folder / "w.html").exists()


def test_exit_codes(folder, capsys):
    base = ["--space", "space.json", "--evals", "4", "--method", "random"]
    assert main(["search", "work_of_mine.py:bowl", *base]) == 0
    assert main(["search", "work_of_mine:bad", *base]) == 1
    for wrong in (
        ["search", "bowl", *base],
        ["search", "work_of_mine:nothing", *base],
        ["search", "no_such_module:f", *base],
        ["search", "work_of_mine:number", *base],
        ["search", "work_of_mine:bowl", "--space", "missing.json"],
        ["search", "work_of_mine:bowl", *base, "--timeout", "3"],
        ["search", "work_of_mine:bowl", *base, "--report", "r.pdf"],
        ["search", "work_of_mine:bowl", *base, "--report", "no/folder/r.html"],
        ["watch", "space.json"],
        ["watch", "missing"],
    ):
        assert main(wrong) == 2, wrong
    assert "fastopt: " in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_the_best(folder):
    env = {"PYTHONPATH": str(Path(fastopt.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "fastopt", "search", "work_of_mine:slow"]
    command += ["--space", "space.json", "--storage", "j", "--method", "random"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if Path("j").exists() and Path("j").read_bytes().count(b"\n") > 3:
            break
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    assert out.startswith("interrupted: ")
    assert "best 0." in out
