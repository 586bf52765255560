"""The smallest file for a graph: short names, equal constants once, nothing that is not read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count, product
from string import ascii_letters
from typing import Any

from fastopt._arrays import Array
from fastopt.models.onnx.graph import Block, Graph

__all__ = ["compact"]


def compact(graph: Graph) -> Graph:
    """A graph that computes the same, under other internal names."""
    found = graph.copy()
    found.prune()
    names: dict[str, str] = {}
    kept: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    values: dict[str, Array] = {}
    fixed = {i.name for i in (*found.block.inputs, *found.block.outputs)} | found.overridable
    for name, a in found.values.items():
        key = (a.dtype.str, a.shape, a.tobytes() if a.size <= 4096 else name.encode())
        first = kept.setdefault(key, name)
        if name in fixed or first == name:
            values[name] = a
        else:
            names[name] = first
    short = _short_names(fixed)

    def new(name: str) -> str:
        name = names.get(name, name)
        if not name or name in fixed:
            return name
        if name not in renamed:
            renamed[name] = next(short)
        return renamed[name]

    renamed: dict[str, str] = {}
    found.block = _with_names(found.block, new, top=True)
    found.values = {new(name): a for name, a in values.items()}
    found.opaque = {new(name): tensor for name, tensor in found.opaque.items()}
    return found


def _short_names(taken: set[str]) -> Iterator[str]:
    for length in count(1):
        for letters in product(ascii_letters, repeat=length):
            name = "".join(letters)
            if name not in taken:
                yield name


def _with_names(block: Block, rename: Callable[[str], str], *, top: bool = False) -> Block:
    def info(entry: Any) -> Any:
        copy = type(entry)()
        copy.CopyFrom(entry)
        copy.name = rename(copy.name)
        return copy

    nodes = []
    for node in block.nodes:
        blocks: Mapping[str, Block] = {k: _with_names(b, rename) for k, b in node.blocks.items()}
        inputs, outputs = tuple(map(rename, node.inputs)), tuple(map(rename, node.outputs))
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]  # optional inputs at the end
        nodes.append(replace(node, inputs=inputs, outputs=outputs, blocks=blocks, name=""))
    if top:
        return replace(block, name="g", nodes=tuple(nodes))
    return Block("", tuple(map(info, block.inputs)), tuple(map(info, block.outputs)), tuple(nodes))
