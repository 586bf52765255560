"""The graph of modules: who reads whom, the shapes between them, forward and backward."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt._options import names
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.models.network.module import Module

__all__ = ["INPUT", "Graph", "input_shape"]

INPUT = "X"


class Graph:
    """Modules in order of execution, each with the names that it reads.

    Parameters
    ----------
    modules : sequence of Module
        Copied, their arrays shared. Unnamed ones get their kind and number for a name; those
        without ``inputs`` read the one before.
    shape : tuple of int
        Of the input, without the axis of the rows.

    Attributes
    ----------
    modules : dict of str to Module
    shapes : dict of str to tuple of int
        Of each module's output, and of the input, without the axis of the rows.

    Raises
    ------
    OptionError
        Names that are not different, inputs that are not there, modules that nobody reads.
    ArrayError
        Shapes that do not fit.
    """

    def __init__(self, modules: Sequence[Module], shape: tuple[int, ...]) -> None:
        if not modules:
            raise OptionError("layers: expected at least one layer, got none")
        self.modules: dict[str, Module] = {}
        self.shapes: dict[str, tuple[int, ...]] = {INPUT: shape}
        before = INPUT
        for k, given in enumerate(modules):
            module = copy.copy(given)
            if not isinstance(module.name, str):
                raise DTypeError(f"layers[{k}]: name is a {type(module.name).__name__}, not text")
            module.name = module.name or f"{module.kind}{k}"
            if module.name in self.shapes:
                raise OptionError(f"layers: names must differ, got {module.name!r} twice")
            module.inputs = names(module.inputs, f"layers: inputs of {module.name}") or (before,)
            self._check_inputs(module)
            shapes = [self.shapes[name] for name in module.inputs]
            self.shapes[module.name] = module.shape(*shapes)
            self.modules[module.name] = module
            before = module.name
        self.output = before
        read = {name for m in self.modules.values() for name in m.inputs}
        idle = [name for name in self.modules if name not in read and name != self.output]
        if idle:
            raise OptionError(f"layers: nobody reads {', '.join(idle)}")
        if self.output in read:
            raise OptionError(f"layers: {self.output} is the last one, and read by another")

    def _check_inputs(self, module: Module) -> None:
        for name in module.inputs:
            if name not in self.shapes:
                raise OptionError(
                    f"layers: {module.name} reads {name!r}, which no layer before it is"
                )
        wanted, found = module.n_inputs, len(module.inputs)
        if found != wanted if wanted is not None else found < 2:
            number = "two or more" if wanted is None else wanted
            raise OptionError(f"layers: {module.name} reads {number} inputs, got {found}")

    @property
    def params(self) -> dict[str, Array]:
        """What is trained, by ``module.array``."""
        return {
            f"{m.name}.{name}": a
            for m in self.modules.values()
            for name, a in m.held().items()
            if name in m.arrays
        }

    def forward(
        self, x: Array, taps: Sequence[str] = (), others: Mapping[str, Module] | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """The output, and what the modules ``taps`` read first.

        ``others`` stand in for modules of their names. A tensor is let go after its last reader.
        """
        last = {name: m.name for m in self.modules.values() for name in m.inputs}
        values, tapped = {INPUT: x}, {}
        for name, module in self.modules.items():
            if name in taps:
                tapped[name] = values[module.inputs[0]]
            run = module if others is None else others.get(name, module)
            y = run.forward(*(values[k] for k in module.inputs))[0]
            for k in module.inputs:
                if last[k] == name:
                    values.pop(k, None)
            values[name] = y
        return values[self.output], tapped

    def forward_saved(self, x: Array, training: bool) -> tuple[Array, dict[str, Any]]:
        """The output, and what :meth:`backward` needs."""
        values, saved = {INPUT: x}, {}
        for name, module in self.modules.items():
            given = [values[k] for k in module.inputs]
            values[name], saved[name] = module.forward(*given, training=training)
        return values[self.output], saved

    def backward(self, delta: Array, saved: dict[str, Any]) -> dict[str, Array]:
        """Gradients of all ``params`` out of the gradient by the output."""
        slopes = {self.output: delta}
        grads: dict[str, Array] = {}
        for name, module in reversed(self.modules.items()):
            wanted = any(k != INPUT for k in module.inputs)
            backs, own = module.backward(slopes.pop(name), saved.pop(name), wanted)
            grads |= {f"{name}.{k}": g for k, g in own.items()}
            for k, back in zip(module.inputs, backs, strict=True):
                if k == INPUT or back is None:
                    continue
                slopes[k] = slopes[k] + back if k in slopes else back
        return {name: grads[name] for name in self.params}

    def replaced(self, change: Mapping[str, Sequence[Module]]) -> Graph:
        """Another graph, with the modules of those names given way to others.

        The readers of a replaced one read the last that stands for it; where none does, the one
        that it read.
        """
        stands: dict[str, str] = {}
        fresh: list[Module] = []
        for name, module in self.modules.items():
            parts = [copy.copy(m) for m in change.get(name, (module,))]
            reads = tuple(stands.get(k, k) for k in module.inputs)
            for k, part in enumerate(parts):
                part.inputs = reads if k == 0 else (parts[k - 1].name,)
            stands[name] = parts[-1].name if parts else reads[0]
            fresh += parts
        return Graph(fresh, self.shapes[INPUT])

    def checked(self, x: Array) -> Array:
        """The input, or ArrayError."""
        if x.shape[1:] != self.shapes[INPUT]:
            raise ArrayError(f"x: expected rows of shape {self.shapes[INPUT]}, got {x.shape}")
        return x


def input_shape(first: Module) -> tuple[int, ...]:
    """The shape that a first dense layer says; others need to be told."""
    if first.kind != "dense":
        raise OptionError(f"input_shape: needed before a {first.kind}, such as (1, 28, 28)")
    return (int(np.shape(first.weight)[1]),)  # type: ignore[attr-defined]
