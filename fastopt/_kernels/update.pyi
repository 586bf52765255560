from typing import Any

import numpy as np

_Array = np.ndarray[Any, np.dtype[Any]]

RULES: dict[str, tuple[int, tuple[bool, ...], int]]

class Address:
    def __init__(self, value: int) -> None: ...

class Plan:
    size: int
    counts: list[tuple[int, float]]
    def __init__(
        self,
        rules: list[str],
        params: list[_Array],
        states: list[tuple[_Array, ...]],
        groups: list[int],
        scales: list[tuple[_Array, ...]] | None = None,
        seed: int = 0,
    ) -> None: ...
    def set_options(self, group: int, values: tuple[float, ...]) -> None: ...
    def set_fused(
        self,
        emas: list[_Array] | None,
        ema_share: float,
        copies: list[_Array | None] | None,
        zero_grads: bool,
    ) -> None: ...
    def step(
        self,
        grads: tuple[_Array | Address | None, ...],
        scale: float,
        max_norm: float,
        guard: bool,
        threads: int,
    ) -> float: ...
