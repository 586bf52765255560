from typing import Any

import numpy as np
import numpy.typing as npt

_I32 = npt.NDArray[np.int32]
_U8 = npt.NDArray[np.uint8]
_Codes = npt.NDArray[Any]

_F32 = npt.NDArray[np.float32]
_Excess = tuple[_I32, npt.NDArray[np.uint16], npt.NDArray[np.int8]]

CLIPS: bool

def packed_size(n: int, k: int, group: int, bits: int, heads: bool) -> int: ...
def pack(
    packed: _U8,
    colsum: _I32 | None,
    scale: _F32 | None,
    zero: _I32 | None,
    b: _Codes,
    n: int,
    k: int,
    group: int,
    bits: int,
    transposed: bool,
    threads: int,
) -> bool: ...
def excess(
    count: _I32,
    start: _I32 | None,
    row: npt.NDArray[np.uint16] | None,
    value: npt.NDArray[np.int8] | None,
    packed: _U8,
    n: int,
    k: int,
    heads: bool,
    threads: int,
) -> None: ...
def unpack(
    out: npt.NDArray[np.int8],
    packed: _U8,
    n: int,
    k: int,
    group: int,
    bits: int,
    heads: bool,
) -> None: ...
def micro_kernel(repeat: int, bits: int = 8, narrow: bool = False) -> int: ...
def linear(
    out: _F32,
    x: _F32,
    packed: _U8,
    narrow: bool,
    bias: _F32,
    activation: int,
    m: int,
    n: int,
    k: int,
    group: int,
    bits: int,
    bits_a: int,
    threads: int,
    excess: _Excess | None = None,
) -> bool: ...
def multiply_i32(
    out: _I32,
    a: _Codes,
    b: _Codes,
    layout: int,
    colsum: _I32 | None,
    narrow: bool,
    za: _I32,
    zb: _I32,
    m: int,
    n: int,
    k: int,
    threads: int,
    excess: _Excess | None = None,
) -> None: ...
def multiply_q8(
    out: _Codes,
    a: _Codes,
    b: _Codes,
    layout: int,
    colsum: _I32 | None,
    narrow: bool,
    za: _I32,
    zb: _I32,
    scale: npt.NDArray[np.float64],
    zero_point: int,
    m: int,
    n: int,
    k: int,
    threads: int,
    excess: _Excess | None = None,
) -> None: ...
