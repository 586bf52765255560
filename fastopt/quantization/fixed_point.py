"""FixedPoint: Qm.n numbers with a choice of rounding and overflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_array, out_for
from fastopt._options import choice, flag, integer
from fastopt._random import Seed
from fastopt.errors import ArrayError
from fastopt.quantization.array import QuantizedArray
from fastopt.quantization.choose_qparams import holds_nan
from fastopt.quantization.codes import OVERFLOWS, ROUNDINGS, decode, encode
from fastopt.quantization.formats import Format, fixed_format
from fastopt.quantization.layout import layout_of

__all__ = ["FixedPoint"]


@dataclass(frozen=True)
class FixedPoint:
    """Fixed point with ``int_bits`` integer and ``frac_bits`` fraction bits: value = code / 2**n.

    Parameters
    ----------
    int_bits, frac_bits : int
        At most 32 bits together, the sign bit included; the sign bit is not one of ``int_bits``.
    signed : bool
        Two's complement, else no sign.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.quantization import FixedPoint
    >>> q = FixedPoint(3, 12)
    >>> q.name, q.low, q.high, q.step
    ('q3.12', -8.0, 7.999755859375, 0.000244140625)
    >>> q.quantize(np.array([9.0], np.float32), overflow="wrap").dequantize().tolist()
    [-7.0]
    """

    int_bits: int
    frac_bits: int
    signed: bool = True

    def __post_init__(self) -> None:
        integer(self.int_bits, "int_bits", low=0)
        integer(self.frac_bits, "frac_bits", low=0)
        flag(self.signed, "signed")
        fixed_format(self.int_bits, self.frac_bits, self.signed)

    @property
    def format(self) -> Format:
        """The format that ``fastopt.quantize`` takes."""
        return fixed_format(self.int_bits, self.frac_bits, self.signed)

    @property
    def name(self) -> str:
        """Its name, such as "q3.12" or "uq4.4"."""
        return self.format.name

    @property
    def step(self) -> float:
        """Distance of two values, 2**-frac_bits."""
        return float(2.0**-self.frac_bits)

    @property
    def low(self) -> float:
        """Smallest value."""
        return self.format.qmin * self.step

    @property
    def high(self) -> float:
        """Largest value."""
        return self.format.qmax * self.step

    def quantize(
        self,
        x: Any,
        *,
        rounding: str = "nearest",
        overflow: str = "saturate",
        out: Any = None,
        seed: Seed = None,
        threads: int | None = None,
    ) -> QuantizedArray:
        """code = overflow(round(x * 2**frac_bits)).

        Parameters
        ----------
        x : array-like, float32 or float64
            The values; not NaN.
        rounding : str
            "nearest" (ties to even), "nearest_away", "floor", "trunc" or "stochastic".
        overflow : str
            "saturate", or "wrap": modulo the range, as an integer register does (exact for
            codes up to 2**52; infinity gives 0).
        out : integer array of x's shape and the format's storage dtype, optional
            Overwritten with the codes, which the result then holds.
        seed : int, SeedSequence or Generator, optional
            Of stochastic rounding; the codes depend on it and not on the thread count.
        threads : int, optional
            Thread count.

        Returns
        -------
        QuantizedArray

        Raises
        ------
        ArrayError
            x holds NaN; ``out`` does not fit.
        OptionError, DTypeError

        Notes
        -----
        Memory is read and written once (with ``out`` x is read once more, before the first
        write). x * 2**frac_bits is exact; stochastic rounding sees it in steps of 2**-16 and adds
        16 random bits of the element's index (Philox4x32-7), so its bias is below 2**-17 steps.
        """
        a = as_array(x, "x", cast="float32")
        choice(rounding, "rounding", ROUNDINGS)
        choice(overflow, "overflow", OVERFLOWS)
        fmt = self.format
        codes = out_for(out, "out", a.shape, fmt.storage, [("x", a)])
        if out is not None:
            _refuse_nan(holds_nan(a, threads))
        scale = np.asarray(self.step, a.dtype)
        zero = np.zeros((), fmt.storage)
        odd = encode(
            codes,
            a,
            scale,
            zero,
            layout_of(a.shape, None, None),
            fmt.qmin,
            fmt.qmax,
            threads,
            rounding=rounding,
            overflow=overflow,
            seed=seed,
            check=out is None,
        )
        _refuse_nan(odd)
        return QuantizedArray(codes, scale, zero, fmt.name, a.shape)

    def dequantize(self, codes: Any, *, out: Any = None, threads: int | None = None) -> Array:
        """The values of bare codes, codes * 2**-frac_bits, as float32 (float64 above 24 bits).

        Parameters
        ----------
        codes : integer array of the format's storage dtype
            The codes.
        out : array, optional
            Overwritten with the result and returned.
        threads : int, optional
            Thread count.

        Returns
        -------
        ndarray
        """
        fmt = self.format
        a = as_array(codes, "codes", dtypes=(fmt.storage,))
        dtype = "float32" if fmt.bits <= 24 else "float64"
        result = out_for(out, "out", a.shape, dtype, [("codes", a)])
        scale, zero = np.asarray(self.step, dtype), np.zeros((), fmt.storage)
        decode(result, a, scale, zero, layout_of(a.shape, None, None), threads)
        return result


def _refuse_nan(found: bool) -> None:
    if found:
        raise ArrayError("x: holds NaN, which fixed point cannot hold; clean the data first")
