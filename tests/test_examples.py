"""The worked example: a line through a parabola, by gradients and by search."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.skipif(not EXAMPLES.exists(), reason="examples/ stands in the source tree")
def test_six_ways_to_the_least_squares_line(capsys: pytest.CaptureFixture[str]) -> None:
    module = runpy.run_path(str(EXAMPLES / "linear_regression.py"))
    found, loss = module["main"](), module["loss"]
    x, y = module["X"][:, 0], module["y"]
    design = np.column_stack([x, np.ones_like(x)])
    w, b = np.linalg.lstsq(design, y, rcond=None)[0]
    best = loss(w, b)
    assert found["closed form"] == pytest.approx((w, b), rel=1e-9)
    for name in ("gd", "momentum"):
        assert found[name] == pytest.approx((w, b), abs=1e-3), name
    assert loss(*found["sgd"]) <= 1.001 * best
    for name in ("random", "greedy", "genetic"):
        assert loss(*found[name]) <= 1.01 * best, name
    assert "genetic" in capsys.readouterr().out
