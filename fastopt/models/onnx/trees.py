"""Tree ensembles of ai.onnx.ml: what they repeat is taken out, the function stays the same.

- a split whose two leaves are equal is a leaf;
- equal trees are one tree with weights summed;
- hit rates, which no run-time needs, and flags that are all 0 are left out; ids are counted anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastopt.models.onnx.graph import Graph, Node, attribute

__all__ = ["KINDS", "Leaf", "Split", "node_of", "read_trees", "thin_trees", "times"]

KINDS = {"TreeEnsembleClassifier": "class", "TreeEnsembleRegressor": "target"}
_NODE_FIELDS = (
    "featureids", "values", "modes", "truenodeids", "falsenodeids", "missing_value_tracks_true",
)  # fmt: skip


@dataclass(frozen=True)
class Leaf:
    """(class or target, weight) pairs."""

    weights: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Split:
    feature: int
    value: float
    mode: str
    missing: int
    yes: Split | Leaf
    no: Split | Leaf


def thin_trees(graph: Graph) -> int:
    """In place: make every tree ensemble smaller; the bytes that were saved."""
    saved = 0
    change: dict[Node, list[Node]] = {}
    for node in graph.block.walk():
        if node.domain != "ai.onnx.ml" or node.op not in KINDS:
            continue
        made = _thinned(node, KINDS[node.op])
        if made is None:
            continue
        gain = _size(node) - _size(made)
        if gain > 0:
            change[node] = [made]
            saved += gain
    graph.rewrite(change)
    return saved


def _size(node: Node) -> int:
    return sum(entry.ByteSize() for entry in node.attrs.values())


def _thinned(node: Node, kind: str) -> Node | None:
    """The ensemble with equal splits and equal trees merged; None where it is out of order."""
    trees = read_trees(node)
    if trees is None:
        return None
    if node.get("aggregate_function", "SUM") == "SUM":
        counted: dict[Split | Leaf, int] = {}
        for tree in trees:
            counted[tree] = counted.get(tree, 0) + 1
        trees = [times(tree, n) for tree, n in counted.items()]
    return node_of(node, trees)


def read_trees(node: Node) -> list[Split | Leaf] | None:
    """The roots of an ensemble, equal splits merged; None where it is out of order."""
    if any(name.endswith("_as_tensor") for name in node.attrs):
        return None
    try:
        return _trees(node, KINDS[node.op])
    except (KeyError, IndexError, RecursionError):
        return None  # the run-time decides about such a file


def node_of(node: Node, trees: Sequence[Split | Leaf]) -> Node:
    """The operator with other trees."""
    kind = KINDS[node.op]
    fields: dict[str, list[Any]] = {name: [] for name in ("treeids", "nodeids", *_NODE_FIELDS)}
    leaves: dict[str, list[Any]] = {n: [] for n in ("treeids", "nodeids", "ids", "weights")}
    for number, tree in enumerate(trees):
        _write(tree, number, fields, leaves)
    if not any(fields["missing_value_tracks_true"]):
        del fields["missing_value_tracks_true"]
    attrs = {
        name: value
        for name, value in node.attrs.items()
        if not name.startswith("nodes_") and name not in {f"{kind}_{k}" for k in leaves}
    }
    attrs |= {f"nodes_{k}": attribute(f"nodes_{k}", v) for k, v in fields.items()}
    attrs |= {f"{kind}_{k}": attribute(f"{kind}_{k}", v) for k, v in leaves.items()}
    return replace(node, attrs=attrs)


def _trees(node: Node, kind: str) -> list[Split | Leaf]:
    n = len(node.get("nodes_nodeids"))
    missing = node.get("nodes_missing_value_tracks_true") or [0] * n
    columns = [node.get(f"nodes_{k}") for k in ("featureids", "values", "modes")]
    yes, no = node.get("nodes_truenodeids"), node.get("nodes_falsenodeids")
    keys = list(zip(node.get("nodes_treeids"), node.get("nodes_nodeids"), strict=True))
    place = {key: k for k, key in enumerate(keys)}
    weights: dict[tuple[int, int], list[tuple[int, float]]] = {}
    parts = [node.get(f"{kind}_{k}") for k in ("treeids", "nodeids", "ids", "weights")]
    for tree, leaf, target, weight in zip(*parts, strict=True):
        weights.setdefault((tree, leaf), []).append((target, weight))
    made: dict[tuple[int, int], Split | Leaf] = {}
    for key in _children_first(keys, place, columns[2], yes, no):
        k = place[key]
        mode = columns[2][k].decode()
        if mode == "LEAF":
            made[key] = Leaf(tuple(weights.get(key, [])))
            continue
        a, b = made[(key[0], yes[k])], made[(key[0], no[k])]
        same = isinstance(a, Leaf) and a == b
        made[key] = a if same else Split(columns[0][k], columns[1][k], mode, missing[k], a, b)
    inner = {(key[0], c) for k, key in enumerate(keys) if columns[2][k] != b"LEAF"
             for c in (yes[k], no[k])}  # fmt: skip
    return [made[key] for key in keys if key not in inner]


def _children_first(
    keys: list[tuple[int, int]],
    place: dict[tuple[int, int], int],
    modes: list[bytes],
    yes: list[int],
    no: list[int],
) -> Iterator[tuple[int, int]]:
    """Nodes after the nodes below them; KeyError where an id is missing or goes in a circle."""
    state: dict[tuple[int, int], int] = {}
    for root in keys:
        stack = [root]
        while stack:
            key = stack[-1]
            k = place[key]
            if state.get(key) == 2:
                stack.pop()
            elif modes[k] == b"LEAF" or state.get(key) == 1:
                state[key] = 2
                yield stack.pop()
            else:
                state[key] = 1
                below = [(key[0], yes[k]), (key[0], no[k])]
                if any(state.get(b) == 1 for b in below):
                    raise KeyError("the tree has a circle")
                stack += [b for b in below if state.get(b) != 2]


def times(tree: Split | Leaf, factor: float) -> Split | Leaf:
    """The tree with its leaves multiplied."""
    if factor == 1:
        return tree
    if isinstance(tree, Leaf):
        return Leaf(tuple((target, weight * factor) for target, weight in tree.weights))
    return replace(tree, yes=times(tree.yes, factor), no=times(tree.no, factor))


def _write(
    tree: Split | Leaf, number: int, fields: dict[str, list[Any]], leaves: dict[str, list[Any]]
) -> None:
    """Append a tree's nodes, counted from 0, the root first."""
    queue = [tree]
    for k, node in enumerate(queue):  # grows while it is read
        row: tuple[Any, ...] = (0, 0.0, "LEAF", 0, 0, 0)
        if isinstance(node, Split):
            below = (len(queue), len(queue) + 1)
            queue += [node.yes, node.no]
            row = (node.feature, node.value, node.mode, *below, node.missing)
        else:
            for target, weight in node.weights:
                for name, value in zip(leaves, (number, k, target, weight), strict=True):
                    leaves[name].append(value)
        fields["treeids"].append(number)
        fields["nodeids"].append(k)
        for name, value in zip(_NODE_FIELDS, row, strict=True):
            fields[name].append(value)
