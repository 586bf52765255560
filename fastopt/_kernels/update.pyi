from typing import Any

import numpy as np

_Array = np.ndarray[Any, np.dtype[Any]]

RULES: dict[str, tuple[int, int, int]]

class Plan:
    size: int
    steps: list[int]
    def __init__(
        self,
        rules: list[str],
        params: list[_Array],
        states: list[tuple[_Array, ...]],
        groups: list[int],
    ) -> None: ...
    def set_options(self, group: int, values: tuple[float, ...]) -> None: ...
    def step(self, grads: tuple[_Array | None, ...], scale: float, threads: int) -> None: ...
