"""An ONNX graph as plain data: nodes that are never changed, only replaced, and constants.

Names are unique over the whole model, subgraphs included, and every constant stands in one
table, wherever the file had it: an initializer, a Constant node, a branch of an If. So a weight
is found by name alone, and a copy shares all nodes and arrays.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.errors import FormatError
from fastopt.models.onnx.files import constant_of, load_onnx

__all__ = ["Block", "Graph", "Node", "attribute", "new_node"]

_CONSTANT_VALUES = ("value", "value_float", "value_floats", "value_int", "value_ints")


@dataclass(frozen=True, eq=False)
class Node:
    """One operator; ``attrs`` holds AttributeProtos, ``blocks`` the subgraphs."""

    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    blocks: Mapping[str, Block] = field(default_factory=dict)
    name: str = ""

    @property
    def label(self) -> str:
        """The node as messages name it."""
        return f"{self.op} {self.name or (self.outputs[0] if self.outputs else '')}".strip()

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute's value."""
        if name not in self.attrs:
            return default
        value = load_onnx().helper.get_attribute_value(self.attrs[name])
        return value.decode() if isinstance(value, bytes) else value


@dataclass(frozen=True, eq=False)
class Block:
    """A graph or subgraph: ValueInfoProtos of inputs and outputs, nodes in order."""

    name: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    nodes: tuple[Node, ...]

    def walk(self) -> Iterator[Node]:
        """All nodes, those of subgraphs after the node that holds them."""
        for node in self.nodes:
            yield node
            for block in node.blocks.values():
                yield from block.walk()

    def free(self) -> set[str]:
        """Names that the block takes from outside."""
        made = {info.name for info in self.inputs}
        used = set()
        for node in self.nodes:
            used |= _needs(node)
            made |= set(node.outputs)
        return (used | {info.name for info in self.outputs}) - made


@dataclass
class Graph:
    """A model: its main block, its constants, and the rest of the ModelProto.

    Attributes
    ----------
    block : Block
    values : dict of ndarray
        Constants by name.
    opaque : dict of TensorProto
        Constants of types that NumPy lacks (strings, bfloat16, float8, 4-bit integers).
    head : ModelProto
        Versions, functions and metadata, with an empty graph.
    overridable : frozenset of str
        Constants that are graph inputs too: a caller may feed another value.
    path : Path or None
        The file.
    """

    block: Block
    values: dict[str, Array]
    opaque: dict[str, Any]
    head: Any
    overridable: frozenset[str] = frozenset()
    path: Path | None = None

    def copy(self) -> Graph:
        """A copy that shares nodes and arrays."""
        return replace(self, values=dict(self.values), opaque=dict(self.opaque))

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return next((e.version for e in self.head.opset_import if e.domain in ("", "ai.onnx")), 1)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """ValueInfoProtos that data must hold."""
        return tuple(i for i in self.block.inputs if i.name not in self.overridable)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(info.name for info in self.block.outputs)

    def producers(self) -> dict[str, Node]:
        """The node that makes each tensor."""
        return {name: node for node in self.block.walk() for name in node.outputs if name}

    def consumers(self) -> dict[str, list[tuple[Node, int]]]:
        """The nodes that read each tensor, with the number of the input; outputs of blocks too.

        A block's output counts as read by a node of its own, ``Output``.
        """
        found: dict[str, list[tuple[Node, int]]] = {}

        def visit(block: Block) -> None:
            for node in block.nodes:
                for k, name in enumerate(node.inputs):
                    if name:
                        found.setdefault(name, []).append((node, k))
                for inner in node.blocks.values():
                    visit(inner)
            names = tuple(info.name for info in block.outputs)
            ending = Node("Output", "fastopt", names, ())
            for k, name in enumerate(names):
                found.setdefault(name, []).append((ending, k))

        visit(self.block)
        return found

    def fresh(self, stem: str) -> str:
        """A name that nothing has."""
        taken = set(self.values) | set(self.opaque) | self.names()
        name, k = stem, 0
        while name in taken:
            k += 1
            name = f"{stem}.{k}"
        return name

    def names(self) -> set[str]:
        """Names of all tensors that are inputs or made by nodes."""
        found = {info.name for info in self.block.inputs}
        for node in self.block.walk():
            found |= set(node.outputs)
            for block in node.blocks.values():
                found |= {info.name for info in block.inputs}
        return found

    def rewrite(self, change: Mapping[Node, list[Node]]) -> None:
        """In place: put other nodes where the keys of ``change`` are."""
        self.block = _rewritten(self.block, change)

    def prune(self) -> None:
        """In place: drop nodes whose outputs nobody reads, then constants that nobody reads."""
        self.block = _without_dead(self.block, set())
        used = self.block.free() | {info.name for info in self.block.outputs}
        used |= self.overridable
        self.values = {k: v for k, v in self.values.items() if k in used}
        self.opaque = {k: v for k, v in self.opaque.items() if k in used}

    # --- protobuf -------------------------------------------------------------------------

    @staticmethod
    def from_proto(model: Any, path: Path | None = None) -> Graph:
        """Read a ModelProto; FormatError where names are missing, made twice or cyclic."""
        return _Reader(model, path).graph()

    def to_proto(self) -> Any:
        """The ModelProto."""
        onnx = load_onnx()
        model = onnx.ModelProto()
        model.CopyFrom(self.head)
        _write_block(self.block, model.graph)
        for name, values in self.values.items():
            model.graph.initializer.append(_tensor(name, values))
        for name, tensor in self.opaque.items():
            added = model.graph.initializer.add()
            added.CopyFrom(tensor)
            added.name = name
        return model


class _Reader:
    """From protobuf: unique names, constants in one table, nodes in order."""

    def __init__(self, model: Any, path: Path | None) -> None:
        self.model, self.path = model, path
        self.values: dict[str, Array] = {}
        self.opaque: dict[str, Any] = {}
        self.taken: set[str] = {i.name for i in (*model.graph.input, *model.graph.output)}

    def error(self, message: str) -> FormatError:
        return FormatError(message, None if self.path is None else str(self.path))

    def graph(self) -> Graph:
        graph = self.model.graph
        initial = {t.name for t in graph.initializer}
        shared = {i.name for i in graph.input} & initial
        # Before IR 4 every initializer had to be listed as an input; nobody fed them.
        listed = shared if self.model.ir_version < 4 else set()
        block = self.block(graph, {}, listed)
        head = load_onnx().ModelProto()
        for entry, value in self.model.ListFields():
            if entry.name in ("graph", "training_info"):
                continue
            if hasattr(value, "extend"):
                getattr(head, entry.name).extend(value)
            else:
                setattr(head, entry.name, value)
        head.ir_version = max(head.ir_version, 4)
        head.graph.name = graph.name
        return Graph(block, self.values, self.opaque, head, frozenset(shared - listed), self.path)

    def keep(self, name: str, tensor: Any) -> None:
        found = constant_of(tensor, self.path)
        if isinstance(found, np.ndarray):
            self.values[name] = found
        else:
            self.opaque[name] = found

    def block(self, graph: Any, outer: Mapping[str, str], listed: set[str]) -> Block:
        top = not outer and graph is self.model.graph
        names = dict(outer)
        own: set[str] = set()

        def define(name: str) -> str:
            if name in own:
                raise self.error(f"tensor {name!r} is made twice")
            own.add(name)
            unique, k = name, 0
            while unique in self.taken and not (top and unique in fixed):
                k += 1
                unique = f"{name}.{k}"
            self.taken.add(unique)
            names[name] = unique
            return unique

        fixed = {i.name for i in (*graph.input, *graph.output)} if top else set()
        inputs = []
        for info in graph.input:
            unique = define(info.name)
            if not (top and info.name in listed):
                inputs.append(_renamed(info, unique))
        for tensor in graph.initializer:
            if not tensor.name:
                raise self.error("an initializer has no name")
            if tensor.name in own and tensor.name in {i.name for i in graph.input}:
                self.keep(names[tensor.name], tensor)
            else:
                self.keep(define(tensor.name), tensor)
        if graph.sparse_initializer:
            raise self.error("sparse initializers are not supported")
        ending = {info.name for info in graph.output}
        made: list[tuple[Any, tuple[str, ...]]] = []
        for node in graph.node:
            outputs = tuple(define(name) if name else "" for name in node.output)
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                tensor = _constant_tensor(node)
                if tensor is not None and node.output[0] not in ending:
                    self.keep(outputs[0], tensor)
                    continue
            made.append((node, outputs))
        nodes = [self.node(node, outputs, names) for node, outputs in made]
        ordered = self.order(nodes)
        for name in ending:
            if name not in names:
                raise self.error(f"output {name!r} is made by no node")
        results = tuple(_renamed(info, names[info.name]) for info in graph.output)
        # A constant of this block that is its result is made here, as it was.
        extra = [
            Node("Constant", "", (), (i.name,), {"value": attribute("value", self.proto(i.name))})
            for i in results
            if not top and (i.name in self.values or i.name in self.opaque)
            and i.name not in set(outer.values())
        ]  # fmt: skip
        for node in extra:
            self.values.pop(node.outputs[0], None)
            self.opaque.pop(node.outputs[0], None)
        return Block(graph.name, tuple(inputs), results, (*extra, *ordered))

    def proto(self, name: str) -> Any:
        if name in self.opaque:
            return self.opaque[name]
        return load_onnx().numpy_helper.from_array(self.values[name])

    def node(self, node: Any, outputs: tuple[str, ...], names: Mapping[str, str]) -> Node:
        try:
            inputs = tuple(names[name] if name else "" for name in node.input)
        except KeyError as error:
            raise self.error(
                f"{node.op_type} {node.name}: its input {error.args[0]!r} is made by no node"
            ) from None
        attrs, blocks = {}, {}
        for entry in node.attribute:
            if entry.HasField("g"):
                blocks[entry.name] = self.block(entry.g, names, set())
            else:
                attrs[entry.name] = _own(entry)
        return Node(node.op_type, node.domain, inputs, outputs, attrs, blocks, node.name)

    def order(self, nodes: list[Node]) -> tuple[Node, ...]:
        """The nodes in an order of execution, the file's own where that is one."""
        maker = {name: k for k, node in enumerate(nodes) for name in node.outputs if name}
        needs = [{maker[name] for name in _needs(node) if name in maker} for node in nodes]
        readers: dict[int, list[int]] = {}
        left = [len(before) for before in needs]
        for k, before in enumerate(needs):
            for j in before:
                readers.setdefault(j, []).append(k)
        ready = [k for k, n in enumerate(left) if n == 0]
        heapq.heapify(ready)
        ordered = []
        while ready:
            k = heapq.heappop(ready)
            ordered.append(nodes[k])
            for reader in readers.get(k, []):
                left[reader] -= 1
                if left[reader] == 0:
                    heapq.heappush(ready, reader)
        if len(ordered) < len(nodes):
            stuck = next(node for node, n in zip(nodes, left, strict=True) if n)
            raise self.error(f"{stuck.label}: the graph has a cycle")
        return tuple(ordered)


def new_node(op: str, inputs: Any, outputs: Any, domain: str = "", **attrs: Any) -> Node:
    """A node from plain values."""
    return Node(
        op, domain, tuple(inputs), tuple(outputs), {k: attribute(k, v) for k, v in attrs.items()}
    )


def attribute(name: str, value: Any) -> Any:
    """An AttributeProto."""
    return load_onnx().helper.make_attribute(name, value)


def _tensor(name: str, values: Array) -> Any:
    """The TensorProto; small integers as varints where that is shorter than 8 bytes each."""
    onnx = load_onnx()
    if values.dtype == np.int64 and values.size:
        bits = np.frexp(np.maximum(values.astype(np.float64), 1))[1]
        lengths = np.where(values < 0, 10, -(-bits // 7))
        if lengths.sum() < values.nbytes:
            flat = values.reshape(-1).tolist()
            return onnx.helper.make_tensor(name, onnx.TensorProto.INT64, values.shape, flat)
    return onnx.numpy_helper.from_array(values, name)


def _own(entry: Any) -> Any:
    """A copy that does not keep the whole file's memory alive."""
    copy = load_onnx().AttributeProto()
    copy.CopyFrom(entry)
    copy.doc_string = ""
    return copy


def _needs(node: Node) -> set[str]:
    found = {name for name in node.inputs if name}
    for block in node.blocks.values():
        found |= block.free()
    return found


def _rewritten(block: Block, change: Mapping[Node, list[Node]]) -> Block:
    nodes: list[Node] = []
    for node in block.nodes:
        if node in change:
            nodes += change[node]
        elif node.blocks:
            inner = {name: _rewritten(b, change) for name, b in node.blocks.items()}
            same = all(inner[name] is b for name, b in node.blocks.items())
            nodes.append(node if same else replace(node, blocks=inner))
        else:
            nodes.append(node)
    if len(nodes) == len(block.nodes) and all(map(_is, nodes, block.nodes)):
        return block
    return replace(block, nodes=tuple(nodes))


def _is(a: object, b: object) -> bool:
    return a is b


def _without_dead(block: Block, wanted: set[str]) -> Block:
    live = wanted | {info.name for info in block.outputs}
    kept: list[Node] = []
    for node in reversed(block.nodes):
        if not live.isdisjoint(node.outputs):
            inner = {name: _without_dead(b, set()) for name, b in node.blocks.items()}
            same = all(inner[name] is b for name, b in node.blocks.items())
            node = node if same else replace(node, blocks=inner)
            live |= _needs(node)
            kept.append(node)
    if len(kept) == len(block.nodes) and all(map(_is, reversed(kept), block.nodes)):
        return block
    return replace(block, nodes=tuple(reversed(kept)))


def _renamed(info: Any, name: str) -> Any:
    copy = load_onnx().ValueInfoProto()
    copy.CopyFrom(info)
    copy.name = name
    copy.doc_string = ""
    return copy


def _constant_tensor(node: Any) -> Any:
    """The TensorProto that a Constant node holds; None for strings and sparse values."""
    helper, proto = load_onnx().helper, load_onnx().TensorProto
    for entry in node.attribute:
        if entry.name not in _CONSTANT_VALUES:
            continue
        if entry.name == "value":
            return entry.t
        value = helper.get_attribute_value(entry)
        kind = proto.FLOAT if "float" in entry.name else proto.INT64
        shape = [len(value)] if entry.name.endswith("s") else []
        return helper.make_tensor("", kind, shape, value if shape else [value])
    return None


def _write_block(block: Block, graph: Any) -> None:
    graph.name = block.name or "graph"  # the checker wants a name
    graph.input.extend(block.inputs)
    graph.output.extend(block.outputs)
    named: set[str] = set()
    for node in block.nodes:
        made = graph.node.add(op_type=node.op, domain=node.domain)
        made.input.extend(node.inputs)
        made.output.extend(node.outputs)
        if node.name and node.name not in named:  # nodes made of one keep its name
            made.name = node.name
            named.add(node.name)
        made.attribute.extend(node.attrs.values())
        for name, inner in node.blocks.items():
            entry = made.attribute.add(name=name, type=load_onnx().AttributeProto.GRAPH)
            _write_block(inner, entry.g)
