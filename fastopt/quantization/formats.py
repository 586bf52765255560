"""The number formats: what a code means, how many bits it has, how it is stored.

A format is one of four kinds: ``int`` (affine integers, value = (code - zero_point) * scale),
``fixed`` (Qm.n fixed point, value = code * 2**-n), ``float`` (narrow floating point, value =
decoded code * scale) and ``codebook`` (value = table[code] * scale).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from fastopt._options import short
from fastopt.errors import OptionError

__all__ = ["BLOCKS", "FLOAT_SPECS", "FORMATS", "FloatSpec", "Format", "fixed_format", "format_of"]


@dataclass(frozen=True)
class Format:
    """One number format.

    Attributes
    ----------
    name : str
        The name that ``quantize`` takes.
    kind : str
        ``"int"``, ``"fixed"``, ``"float"`` or ``"codebook"``.
    bits : int
        Bits of one code.
    storage : str
        NumPy dtype of an unpacked code; codes of 2, 3, 5, 6 and 7 bits take a byte each.
    qmin, qmax : int
        Smallest and largest code (``int`` and ``fixed``).
    frac_bits : int
        Fraction bits (``fixed``).
    peak : float
        Largest finite value at scale 1 (``float`` and ``codebook``).
    packed : bool
        Two codes share a byte in memory.
    """

    name: str
    kind: str
    bits: int
    storage: str
    qmin: int = 0
    qmax: int = 0
    frac_bits: int = 0
    peak: float = 0.0
    packed: bool = False

    @property
    def affine(self) -> bool:
        """Whether codes are integers whose scale and zero point are chosen by the data."""
        return self.kind == "int"

    @property
    def integers(self) -> bool:
        """Whether a value is (code - zero point) * scale, of whole numbers."""
        return self.kind in ("int", "fixed")

    @property
    def floating(self) -> bool:
        """Whether a code has a sign, an exponent and a mantissa."""
        return self.kind == "float"

    @property
    def tabled(self) -> bool:
        """Whether a code is an index of a table."""
        return self.kind == "codebook"

    @property
    def own_scale(self) -> float | None:
        """The scale that the format itself sets, 2**-frac_bits of fixed point; else None."""
        return 2.0**-self.frac_bits if self.kind == "fixed" else None

    @property
    def scaled(self) -> bool:
        """Whether the data choose the scale: not of fixed point, nor of 16-bit floats."""
        return self.own_scale is None and not (self.floating and self.bits == 16)

    @property
    def code_limits(self) -> tuple[int, int]:
        """Smallest and largest code."""
        return (self.qmin, self.qmax) if self.integers else (0, (1 << self.bits) - 1)

    @property
    def signed(self) -> bool:
        """Whether codes (or values) can be negative."""
        return not self.integers or self.qmin < 0

    @property
    def symmetric_zero_point(self) -> int:
        """The zero point of a symmetric code: 0, or the middle of an unsigned integer range."""
        return 0 if self.qmin < 0 or not self.affine else (self.qmax + 1) // 2

    @property
    def symmetric_range(self) -> int:
        """Largest distance from the zero point that both sides have: 127 for int8 and uint8."""
        return self.qmax - self.symmetric_zero_point

    def limits(self, symmetric: bool) -> tuple[int, int]:
        """Smallest and largest code in use."""
        if self.affine and symmetric:
            return self.symmetric_zero_point - self.symmetric_range, self.qmax
        return self.qmin, self.qmax


def _integer(name: str, bits: int, signed: bool, storage: str, packed: bool = False) -> Format:
    low = -(1 << (bits - 1)) if signed else 0
    high = (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1
    return Format(name, "int", bits, storage, low, high, packed=packed)


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        _integer("int8", 8, True, "int8"),
        _integer("uint8", 8, False, "uint8"),
        _integer("int16", 16, True, "int16"),
        _integer("uint16", 16, False, "uint16"),
        _integer("int4", 4, True, "int8", packed=True),
        _integer("uint4", 4, False, "uint8", packed=True),
        *(_integer(f"int{bits}", bits, True, "int8") for bits in (2, 3, 5, 6, 7)),
        *(_integer(f"uint{bits}", bits, False, "uint8") for bits in (2, 3, 5, 6, 7)),
        Format("float16", "float", 16, "uint16", peak=65504.0),
        Format("bfloat16", "float", 16, "uint16", peak=(2 - 2**-7) * 2.0**127),
        Format("float8_e4m3fn", "float", 8, "uint8", peak=448.0),
        Format("float8_e5m2", "float", 8, "uint8", peak=57344.0),
        Format("nf4", "codebook", 4, "uint8", peak=1.0, packed=True),
        Format("mxfp4", "codebook", 4, "uint8", peak=6.0, packed=True),
    )
}
BLOCKS = {"nf4": 64, "mxfp4": 32}  # elements that share a scale where nothing else is asked for


class FloatSpec(NamedTuple):
    """Bits of a narrow floating-point format, as the cast kernel takes them."""

    bits: int
    man: int
    bias: int
    max_code: int
    over: int
    nan: int


# ``over`` is the code of infinity, or of NaN where there is no infinity.
FLOAT_SPECS: dict[str, FloatSpec] = {
    "float16": FloatSpec(16, 10, 15, 0x7BFF, 0x7C00, 0x7E00),
    "bfloat16": FloatSpec(16, 7, 127, 0x7F7F, 0x7F80, 0x7FC0),
    "float8_e4m3fn": FloatSpec(8, 3, 7, 0x7E, 0x7F, 0x7F),
    "float8_e5m2": FloatSpec(8, 2, 15, 0x7B, 0x7C, 0x7E),
}

_FIXED = re.compile(r"(u?)q(\d{1,3})\.(\d{1,3})\Z", re.IGNORECASE)


def fixed_format(int_bits: int, frac_bits: int, signed: bool = True) -> Format:
    """The fixed-point format with ``int_bits`` integer and ``frac_bits`` fraction bits.

    The sign bit is not counted: q3.12 has 16 bits, values -8 to 8 - 2**-12 in steps of 2**-12.
    """
    bits = int_bits + frac_bits + int(signed)
    if int_bits < 0 or frac_bits < 0 or int_bits + frac_bits < 1 or bits > 32:
        raise OptionError(
            f"dtype: a fixed-point format has 1 to 32 bits with its sign, got q{int_bits}."
            f"{frac_bits} with {bits}"
        )
    width = 8 if bits <= 8 else 16 if bits <= 16 else 32
    return Format(
        f"{'' if signed else 'u'}q{int_bits}.{frac_bits}",
        "fixed",
        bits,
        f"{'' if signed else 'u'}int{width}",
        -(1 << (bits - 1)) if signed else 0,
        (1 << (int_bits + frac_bits)) - 1,
        frac_bits,
    )


def format_of(dtype: object) -> Format:
    """The format called ``dtype``: a name such as "int8", "q3.12" or a Format itself.

    Parameters
    ----------
    dtype : str or Format
        A name that ``quantize`` takes, or a Format, which is returned.

    Returns
    -------
    Format

    Raises
    ------
    OptionError
        No such format.

    Examples
    --------
    >>> from fastopt.quantization import format_of
    >>> f = format_of("q3.12")
    >>> f.kind, f.bits, f.frac_bits, f.storage
    ('fixed', 16, 12, 'int16')
    """
    if isinstance(dtype, Format):
        return dtype
    if isinstance(dtype, str):
        if dtype in FORMATS:
            return FORMATS[dtype]
        match = _FIXED.match(dtype)
        if match:
            return fixed_format(int(match[2]), int(match[3]), not match[1])
    raise OptionError(
        f"dtype: expected one of {', '.join(map(repr, FORMATS))} or a fixed-point format such as "
        f"'q3.12' (signed) or 'uq4.12' (unsigned), got {short(dtype)}"
    )
