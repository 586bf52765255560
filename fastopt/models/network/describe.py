"""Layers as the protocol shows them, and the forms that they can be stored in."""

from __future__ import annotations

from dataclasses import replace

from fastopt.models.base import FLOAT32, Form, Layer
from fastopt.models.network.dense import Dense

__all__ = ["described"]

_GROUP = 32  # neighbours that share a scale in four-bit codes


def described(d: Dense) -> Layer:
    """A layer as the protocol shows it."""
    n_out, n_in = d.weight.shape
    forms = [Form(FLOAT32, 32, nbytes=4 * n_out * n_in)]
    forms.append(Form("int8", 8, nbytes=n_out * n_in + 4 * n_out))
    if n_in % _GROUP == 0:
        groups = n_out * (n_in // _GROUP)
        forms.append(Form("int4g", 4, _GROUP, nbytes=(n_out * n_in + 1) // 2 + 4 * groups))
    now = forms[0]
    if d.stored is not None:
        grouped = [f for f in forms[1:] if f.group_size == d.stored.group_size]
        now = grouped[0] if grouped else Form(d.stored.dtype, d.stored.format.bits)
        now = replace(now, nbytes=d.stored.nbytes)
    name = f"{d.name}.in"
    return Layer(
        d.name, "dense", d.weight, d.bias, d.weight.size, name, now, tuple(forms), stored=d.stored
    )
