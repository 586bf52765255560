"""Coupling groups by label propagation: which positions of which axes live and die together.

Every position of every tensor's every axis is an element. Each operator ties elements (position 3
of a convolution's output channels is row 3 of its weight), the connected sets are the units, and
units with the same places make a group. What an operator cannot shrink is frozen with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastopt._arrays import Array
from fastopt.models.base import Group, Member

if TYPE_CHECKING:  # any format whose operators have ONNX's names, inputs and outputs
    from fastopt.models.onnx.graph import Graph, Node
    from fastopt.models.onnx.layers import Site

__all__ = ["INSIDE", "Labels", "Rule", "groups_of", "propagate", "reshaped"]

LONGEST_AXIS = 1 << 17
LISTED = 4096  # longer axes are no groups where nothing of them can go
INSIDE = "inside a block"


@dataclass
class Labels:
    """Elements, their ties and what is frozen.

    Attributes
    ----------
    shapes : mapping
        Shape of each tensor for one run.
    start : dict
        First element of each (tensor, axis).
    pick : dict
        For an axis that a Reshape cuts into factors, or makes of them, which of them may shrink;
        0, the outermost, where nothing is said. By (node, tensor, axis).
    cuts : list
        What was picked: (key, elements of the factor, number of factors).
    unit : array of int
        The unit of each element, once :meth:`settle` has run: the least element tied to it.
    """

    shapes: dict[str, tuple[int, ...]]
    start: dict[tuple[str, int], int] = field(default_factory=dict)
    n: int = 0
    ties: list[tuple[Array, Array]] = field(default_factory=list)
    frozen: list[tuple[Array, str]] = field(default_factory=list)
    pick: dict[tuple[Node, str, int], int] = field(default_factory=dict)
    cuts: list[tuple[tuple[Node, str, int], Array, int]] = field(default_factory=list)
    unit: Array = field(default_factory=lambda: np.zeros(0, np.intp))

    def rank(self, tensor: str) -> int:
        return len(self.shapes[tensor])

    def known(self, tensor: str) -> bool:
        """Whether the tensor exists and its shape has been seen."""
        return bool(tensor) and tensor in self.shapes

    def axis(self, tensor: str, axis: int) -> Array:
        """The elements along an axis; none for one of size 1, which holds for any unit."""
        shape = self.shapes[tensor]
        axis %= len(shape)
        size = shape[axis]
        if size <= 1 or size > LONGEST_AXIS:
            return np.zeros(0, np.intp)
        key = (tensor, axis)
        if key not in self.start:
            self.start[key] = self.n
            self.n += size
        return np.arange(self.start[key], self.start[key] + size)

    def tie(self, a: Array, b: Array) -> None:
        """Elements a[i] and b[i] live and die together."""
        if a.size == b.size:
            self.ties.append((a, b))
        elif a.size and b.size:
            self.freeze(a, "sizes do not meet")
            self.freeze(b, "sizes do not meet")

    def freeze(self, elements: Array, reason: str) -> None:
        """These elements cannot go."""
        if elements.size:
            self.frozen.append((elements, reason))

    def freeze_all(self, tensor: str, reason: str) -> None:
        if self.known(tensor):
            for axis in range(self.rank(tensor)):
                self.freeze(self.axis(tensor, axis), reason)

    def settle(self) -> None:
        """In place: find the connected sets."""
        unit = np.arange(self.n)
        if self.ties:
            a = np.concatenate([t[0] for t in self.ties])
            b = np.concatenate([t[1] for t in self.ties])
            while True:
                low = np.minimum(unit[a], unit[b])
                before = unit.copy()
                np.minimum.at(unit, unit[a], low)
                np.minimum.at(unit, unit[b], low)
                while True:
                    shorter = unit[unit]
                    if np.array_equal(shorter, unit):
                        break
                    unit = shorter
                if np.array_equal(before, unit):
                    break
        self.unit = unit

    def removed(self, units: Array) -> dict[tuple[str, int], Array]:
        """For each (tensor, axis) that holds those units, a mask of the positions that go."""
        gone = np.isin(self.unit, units)
        found = {}
        for (tensor, axis), start in self.start.items():
            mask = gone[start : start + self.shapes[tensor][axis]]
            if mask.any():
                found[(tensor, axis)] = mask
        return found


Rule: TypeAlias = "Callable[[Node, Labels, Graph], None]"


def propagate(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]], rules: Mapping[str, Rule]
) -> tuple[Labels, list[str]]:
    """Ties of all operators; and a note for each kind of operator that has no rule.

    Where the axis that a Reshape picked cannot shrink (the three of query, key and value), the
    next one is tried.
    """
    pick: dict[tuple[Node, str, int], int] = {}
    while True:
        labels, notes = _tied(graph, shapes, rules, pick)
        # what a cut itself holds fast is no reason: that changes with the pick
        frozen = [labels.unit[e] for e, why in labels.frozen if not why.endswith(INSIDE)]
        stuck = np.unique(np.concatenate(frozen)) if frozen else np.zeros(0, np.intp)
        more = {
            key: pick.get(key, 0) + 1
            for key, elements, n in labels.cuts
            if pick.get(key, 0) + 1 < n and np.isin(labels.unit[elements], stuck).all()
        }
        if not more:
            return labels, notes
        pick |= more


def _tied(
    graph: Graph,
    shapes: Mapping[str, tuple[int, ...]],
    rules: Mapping[str, Rule],
    pick: dict[tuple[Node, str, int], int],
) -> tuple[Labels, list[str]]:
    labels = Labels(dict(shapes), pick=pick)
    unknown: dict[str, int] = {}
    for info in (*graph.block.inputs, *graph.block.outputs):
        labels.freeze_all(info.name, f"{info.name} is an input or output")
    for name in graph.overridable:
        labels.freeze_all(name, f"{name} can be fed")
    for node in graph.block.nodes:
        names = [n for n in (*node.inputs, *node.outputs) if n]
        for block in node.blocks.values():
            for name in block.free():
                labels.freeze_all(name, f"{node.label} reads it inside")
        rule = rules.get(node.op)
        if rule is None or node.blocks:
            unknown[node.op] = unknown.get(node.op, 0) + 1
            for name in names:
                labels.freeze_all(name, f"{node.label} has no rule")
        elif all(labels.known(n) for n in names):
            rule(node, labels, graph)
        else:
            for name in names:
                labels.freeze_all(name, f"{node.label}: a shape is not known")
    labels.settle()
    notes = [f"{op} ({k}) has no rule: what it touches is not pruned" for op, k in unknown.items()]
    return labels, notes


def groups_of(
    labels: Labels, sites: Mapping[str, Site], constants: Mapping[str, Array]
) -> tuple[dict[str, Group], dict[str, Array]]:
    """The groups by name, and the units of each."""
    reason: dict[int, str] = {}
    for elements, cause in reversed(labels.frozen):
        for unit in np.unique(labels.unit[elements]).tolist():
            reason[unit] = cause
    places: dict[int, dict[tuple[str, int], list[int]]] = {}
    order: dict[int, int] = {}
    rank = {name: k for k, name in enumerate(sites)}
    for (tensor, axis), start in labels.start.items():
        if tensor not in constants and tensor not in sites:
            continue
        units = labels.unit[start : start + labels.shapes[tensor][axis]]
        if units.size > LISTED and all(unit in reason for unit in units.tolist()):
            continue  # the rows of a vocabulary
        for position, unit in enumerate(units.tolist()):
            places.setdefault(unit, {}).setdefault((tensor, axis), []).append(position)
            order[unit] = min(order.get(unit, len(rank)), rank.get(tensor, len(rank)))
    alike: dict[tuple[Any, str | None], list[int]] = {}
    for unit, found in places.items():
        if order[unit] < len(rank):
            key = tuple((place, len(index)) for place, index in sorted(found.items()))
            alike.setdefault((key, reason.get(unit)), []).append(unit)
    groups: dict[str, Group] = {}
    units_by_name: dict[str, Array] = {}
    for (_, why), members in sorted(alike.items(), key=lambda item: order[item[1][0]]):
        group = _group([places[u] for u in members], sites, why)
        if group is None:
            continue
        name, k = group.name, 1
        while name in groups:
            k += 1
            name = f"{group.name}/{k}"
        groups[name] = replace(group, name=name)
        units_by_name[name] = np.array(members)
    return groups, units_by_name


def _group(
    found: Sequence[Mapping[tuple[str, int], list[int]]],
    sites: Mapping[str, Site],
    why: str | None,
) -> Group | None:
    if len(found) < 2:
        return None
    producers: list[Member] = []
    consumers: list[Member] = []
    others: list[Member] = []
    for tensor, axis in found[0]:
        index = np.array([place[(tensor, axis)] for place in found], np.intp)
        site = sites.get(tensor)
        if site is None:
            others.append(Member(tensor, axis, index))
            continue
        side, members = _in_matrix(site, axis, index)
        member = Member(tensor, side, members)
        made = side == 0 or site.kind == "embedding"
        (producers if made else consumers).append(member)
    if not producers and not consumers:
        return None
    if not (producers and consumers) and why is None:
        why = "no layer makes the units" if not producers else "no layer reads the units"
    first = min((m.tensor for m in (producers or consumers)), key=list(sites).index)
    first = first if producers else f"{first}.in"
    return Group(
        first, len(found), tuple(producers), tuple(consumers), tuple(others),
        why,
    )  # fmt: skip


def _in_matrix(site: Site, axis: int, index: Array) -> tuple[int, Array]:
    """Positions on a stored tensor's axis as rows (0) or columns (1) of the layer's matrix."""
    shape = site.view.shape
    along = np.arange(shape[axis]).reshape(-1, *[1] * (len(shape) - 1 - axis))
    seen = site.view.matrix(np.broadcast_to(along, shape))
    if (seen == seen[:, :1]).all():
        side, line = 0, seen[:, 0]
    elif (seen == seen[:1]).all():
        side, line = 1, seen[0]
    else:  # a grouped convolution: the same column in the rows of several blocks
        columns = [np.unique(np.nonzero(np.isin(seen, unit))[1]) for unit in index]
        return 1, np.array(columns, np.intp)
    order = np.argsort(line, kind="stable")
    spread = order.reshape(shape[axis], line.size // shape[axis])
    return side, spread[index].reshape(len(index), -1)


def reshaped(
    source: tuple[int, ...], target: tuple[int, ...]
) -> Iterator[tuple[list[int], list[int]]]:
    """Axes of both shapes in sets of equal product, from the front; sizes of 1 left out."""
    a = [k for k, n in enumerate(source) if n != 1]
    b = [k for k, n in enumerate(target) if n != 1]
    while a or b:
        left, right = a[:1], b[:1]
        a, b = a[1:], b[1:]
        while True:
            p = math.prod(source[k] for k in left)
            q = math.prod(target[k] for k in right)
            if p == q:
                break
            if p < q and a:
                left.append(a.pop(0))
            elif q < p and b:
                right.append(b.pop(0))
            else:
                return
        yield left, right
