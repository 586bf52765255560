"""The commands as a user types them, in a fresh process, and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt.cli import main
from fastopt.models import Network


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 8)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    net = Network.mlp((8, 64, 2), seed=0)
    net.fit(x[:300], y[:300], fastopt.optim.Adam(net.params, lr=3e-3), epochs=15)
    model, data = tmp_path / "net.npz", tmp_path / "data.npz"
    net.save(model)
    np.savez(data, X=x[300:], y=y[300:])
    return model, data


def fast(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastopt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_compress_writes_a_smaller_model_and_a_report(files, tmp_path: Path) -> None:
    model, data = files
    before = model.read_bytes()
    out, page = tmp_path / "small.npz", tmp_path / "r.html"
    done = fast(
        "compress", model, "--data", data, "-o", out, "--report", page, "--evals", 20, "--json"
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["max_drop"] == 0.01
    assert Network.load(out).nbytes == facts["after"]["nbytes"] < facts["before"]["nbytes"]
    assert page.read_text().startswith("<!doctype html>")
    assert model.read_bytes() == before


def test_inspect_info_and_version(files, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(files[0])]) == 0
    assert "dense0" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert "level" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0


def test_faults_are_one_line_and_a_code(files, tmp_path: Path, capsys) -> None:
    model, data = files
    (tmp_path / "junk.npz").write_bytes(b"junk")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "table.csv").write_text("1,2\n")
    (tmp_path / "page").mkdir()
    np.save(tmp_path / "narrow.npy", np.zeros((9, 2)))
    out = ("-o", str(tmp_path / "o.npz"))
    good = ["compress", str(model), "--data", str(data)]
    for arguments, word in [
        (["compress", str(tmp_path / "none.npz"), "--data", str(data), *out], "none.npz"),
        (["compress", str(tmp_path / "junk.npz"), "--data", str(data), *out], "junk.npz"),
        (["compress", str(model), "--data", str(tmp_path / "junk.npz"), *out], "junk.npz"),
        (["compress", str(model), "--data", str(tmp_path / "empty.npz"), *out], "empty.npz"),
        (
            ["compress", str(model), "--data", str(tmp_path / "table.csv"), *out],
            "expected an .npz",
        ),
        (["compress", str(model), "--data", str(tmp_path / "narrow.npy"), *out], "(2,)"),
        (["compress", str(model), "--data", "nomodule:f", *out], "nomodule"),
        ([*good, "-o", str(model)], "the input model"),
        ([*good, "-o", str(data)], "the input --data"),
        ([*good, *out, "--report", str(data)], "the input --data"),
        ([*good, *out, "--report", str(model)], "the input model"),
        ([*good, *out, "--report", str(tmp_path / "o.npz")], "the output --output"),
        ([*good, "-o", str(tmp_path / "missing" / "o.npz")], "no folder"),
        ([*good, "-o", str(tmp_path / "o.onnx")], ".npz or .safetensors"),
        ([*good, "-o", str(tmp_path / "page")], "folder"),
        ([*good, "--max-drop", "x", *out], "max-drop"),
        ([*good, "--max-drop", "5", *out], "did you mean 5%"),
        ([*good, "--labels", "z", *out], "z"),
        (["inspect", "model.pkl"], "model.pkl"),
    ]:
        assert main(arguments) == 2, arguments
        err = capsys.readouterr().err
        assert word in err
        assert err.count("\n") == 1
        assert "Traceback" not in err
    assert not (tmp_path / "o.npz").exists()
    for wrong in ([], ["compress"], ["nonsense"]):
        with pytest.raises(SystemExit) as done:
            main(wrong)
        assert done.value.code == 2


def test_a_budget_that_cannot_be_kept_exits_with_3(files, tmp_path: Path) -> None:
    """One recipe, one evaluation: the first start keeps everything but int8; forbid any drop."""
    model, data = files
    net = Network.load(model)
    with np.load(data) as file:
        x = file["X"]
    np.savez(data, X=x)  # without labels the metric is R^2 with the model's own outputs
    out = tmp_path / "o.npz"
    done = fast("compress", model, "--data", data, "-o", out, "--max-drop", "0", "--evals", 1)
    assert done.returncode == 3, done.stderr
    assert "unchanged" in done.stdout
    np.testing.assert_array_equal(Network.load(out).forward(x), net.forward(x))


def test_the_demo_runs_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    done = fast("demo", "-o", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    for word in ("gradient descent", "SGD", "momentum", "Adam", "random", "greedy", "genetic"):
        assert word in done.stdout
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<svg") in (4, 6)  # without onnx, with it
    (model,) = (tmp_path / "demo").glob("model.*")
    small = Network.load(model)
    from fastopt.demo import load_digits

    # About 45x and 96.6 % where this was written; another BLAS rounds otherwise.
    assert 30 * small.nbytes <= 4 * (64 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10)
    assert small.score(*load_digits(0).test) >= 0.945
