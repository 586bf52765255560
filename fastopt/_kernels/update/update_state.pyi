from typing import Any

import numpy as np

_Array = np.ndarray[Any, np.dtype[Any]]

def decode_state(out: _Array, codes: _Array, scales: _Array | None) -> None: ...
def encode_state(
    codes: _Array, scales: _Array | None, x: _Array, key: int, turn: int = 0
) -> None: ...
