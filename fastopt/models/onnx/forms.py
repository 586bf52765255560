"""What a weight can be stored as: the forms of a layer, with their bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.errors import ArrayError, OptionError
from fastopt.models.base import FLOAT32, Form
from fastopt.models.onnx.encode import LARGEST_SCALE
from fastopt.models.onnx.graph import Graph
from fastopt.models.onnx.layers import Site
from fastopt.quantization import QuantizedArray, quantize

__all__ = [
    "GROUP",
    "code_bytes",
    "forms_of",
    "group_near",
    "own_form",
    "round_plainly",
    "unsigned_codes",
]

GROUP = 32  # weights that share a scale, about
WIDE_GROUP = 128  # where a scale would weigh more than it mends
BITS = (2, 3, 4, 5, 6, 8)
SCALE_BYTES = 2


def group_near(n_in: int, wanted: int = GROUP) -> int | None:
    """The divisor of n_in nearest to ``wanted`` by ratio; None where a row is about that long."""
    if n_in <= wanted * 3 // 2:
        return None
    near = [g for g in range(wanted // 2, 2 * wanted + 1) if n_in % g == 0]
    return min(near, key=lambda g: max(g / wanted, wanted / g), default=None)


def forms_of(
    matrix: Array, *, dynamic: bool, static: bool, portable: bool, by_row: bool = True
) -> tuple[Form, ...]:
    """The forms of a layer with this (n_out, n_in) weight.

    Parameters
    ----------
    dynamic, static : bool
        Whether its operator can run in int8.
    portable : bool
        Only what run-times that do not fold constants run well.
    by_row : bool
        Whether codes can have one scale per row.
    """
    n_out, n_in = matrix.shape
    size = matrix.size
    found = [Form(FLOAT32, 32, nbytes=4 * size), Form("float16", 16, nbytes=2 * size)]
    groups = {"g": group_near(n_in), "w": group_near(n_in, WIDE_GROUP)}
    peak = np.abs(matrix).max(initial=0.0)
    if not peak <= LARGEST_SCALE:  # infinite or NaN, or its scale would not fit
        return tuple(found[: 1 if not peak <= 65504 else 2])
    for bits in (8,) * by_row if portable else BITS:
        found.append(Form(f"int{bits}", bits, nbytes=code_bytes(bits, n_out, n_in, None)))
        for letter, group in groups.items():
            if group is not None and not portable:
                nbytes = code_bytes(bits, n_out, n_in, group)
                found.append(Form(f"int{bits}{letter}", bits, group, nbytes=nbytes))
    names = {form.name: form for form in found}
    for activations, possible in (("dynamic", dynamic), ("static", static)):
        if not possible:
            continue
        for name in ("int8", "int4g", "int5g", "int6g"):
            if name in names:
                form = names[name]
                extra = 0 if form.group_size is None else SCALE_BYTES * n_out
                found.append(
                    Form(
                        f"{name}+{activations}", form.bits, form.group_size, activations,
                        form.nbytes + extra,
                    )
                )  # fmt: skip
    return tuple(found)


def own_form(graph: Graph, site: Site, matrix: Array, forms: tuple[Form, ...]) -> Form:
    """The form that a layer has in the file as it was read."""
    if site.anchor in graph.values:
        name = {"float32": FLOAT32, "float16": "float16"}.get(site.dtype, "float64")
        known = {form.name: form for form in forms}
        return known.get(name) or Form(name, 64, nbytes=8 * matrix.size)
    maker = graph.producers()
    nbytes, stack = 0, [site.anchor]
    while stack:
        name = stack.pop()
        if name in maker:
            stack += [i for i in maker[name].inputs if i]
        elif name in graph.values:
            nbytes += graph.values[name].nbytes
    return Form("as is", 8 * nbytes // max(1, matrix.size), nbytes=nbytes)


def code_bytes(bits: int, n_out: int, n_in: int, group: int | None) -> int:
    """Bytes of codes and float16 scales."""
    return -(-n_out * n_in * bits // 8) + SCALE_BYTES * n_out * (n_in // (group or n_in))


def round_plainly(weight: Array, form: Form) -> QuantizedArray:
    """Codes of the nearest values; scales from the range with the least squared error."""
    axis = 0 if form.group_size is None else 1
    fmt = f"int{form.bits}"
    return quantize(weight, fmt, axis=axis, group_size=form.group_size, method="mse")


def unsigned_codes(codes: QuantizedArray, form: Form, shape: tuple[int, int]) -> tuple[Any, Any]:
    """Codes as uint8 with the middle at 2**(bits-1), and scales (n_out, groups) float32.

    Raises
    ------
    ArrayError, OptionError
        Another shape, granularity or width than the form's, or affine codes.
    """
    if tuple(codes.shape) != shape:
        raise ArrayError(f"codes: expected shape {shape}, got {tuple(codes.shape)}")
    if not codes.symmetric:
        raise OptionError("codes: expected symmetric codes, got affine ones")
    n_out, n_in = shape
    groups = n_in // (form.group_size or n_in)
    wanted = (0, None) if form.group_size is None else (1, form.group_size)
    if (codes.axis, codes.group_size) != wanted:
        raise OptionError(
            f"codes: {form.name} needs axis={wanted[0]}, group_size={wanted[1]}, "
            f"got axis={codes.axis}, group_size={codes.group_size}"
        )
    middle = codes.format.symmetric_zero_point
    signed = codes.unpacked().astype(np.int16) - middle
    half = 1 << (form.bits - 1)
    if signed.size and (signed.min() < -half or signed.max() >= half):
        raise OptionError(f"codes: {form.name} holds {-half}..{half - 1}")
    scale = np.asarray(codes.scale, np.float32).reshape(n_out, groups)
    return (signed + half).astype(np.uint8), scale
