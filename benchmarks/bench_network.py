"""Networks: a depthwise layer, and an epoch of a conv net on digits, beside torch's."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from benchmarks.digits_networks import our_epoch, torch_epoch
from benchmarks.harness import Case, peer
from fastopt.models.network import Conv2d


def depthwise(threads: int, back: bool) -> dict[str, Any]:
    """64 images of 32 channels, 16 x 16, a kernel of 3 x 3; with both gradients where ``back``."""
    rng = np.random.default_rng(0)
    conv = Conv2d.random(32, 32, 3, groups=32, padding=1, bias=False, seed=0)
    planes = rng.standard_normal((32, 16, 16, 64), np.float32)
    x = planes.transpose(3, 0, 1, 2)  # the memory order that a layer before it leaves

    def run() -> None:
        y, saved = conv.forward(x)
        if back:
            conv.backward(y, saved)

    contenders: dict[str, Any] = {"fastopt": run}
    if torch := peer("torch"):
        image = torch.from_numpy(np.ascontiguousarray(x)).requires_grad_(back)
        weight = torch.from_numpy(conv.weight).requires_grad_(back)

        def theirs() -> None:
            y = torch.nn.functional.conv2d(image, weight, padding=1, groups=32)
            if back:
                torch.autograd.grad(y, (image, weight), y.detach())

        contenders["torch"] = theirs
    return contenders


def epoch(threads: int, width: int) -> dict[str, Any]:
    """Adam, batches of 64; both with the threads of BLAS and torch's own as they are."""
    contenders: dict[str, Any] = {"fastopt": our_epoch(width)}
    if peer("torch"):
        contenders["torch"] = torch_epoch(width)
    return contenders


CASES = [
    Case("depthwise 3x3, 32 channels", partial(depthwise, back=False), targets={"torch": 1.0}),
    Case("depthwise 3x3, with gradients", partial(depthwise, back=True), targets={"torch": 1.0}),
    Case("an epoch, conv net of 16", partial(epoch, width=16), threads=2, targets={"torch": 0.77}),
    Case("an epoch, conv net of 32", partial(epoch, width=32), threads=2, targets={"torch": 0.77}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_network(case: Case, benchmark: Any) -> None:
    case.run(benchmark)
