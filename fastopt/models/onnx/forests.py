"""Tree ensembles as layers: y = sum_t w_t tree_t(x), a weight for each tree.

A tree is a unit: to remove some and to fit the weights of the others is what pruning does to any
layer's columns. The layer's input rows are the trees' outputs, one row per row and target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fastopt._arrays import Array
from fastopt.models.base import FLOAT32, Form, Group, Layer, Member
from fastopt.models.onnx.graph import Graph, Node, attribute
from fastopt.models.onnx.trees import KINDS, Leaf, Split, node_of, read_trees, times

__all__ = ["Forest", "find_forests", "rewritten"]

_COMPARE = {
    "BRANCH_LEQ": np.less_equal, "BRANCH_LT": np.less, "BRANCH_GTE": np.greater_equal,
    "BRANCH_GT": np.greater, "BRANCH_EQ": np.equal, "BRANCH_NEQ": np.not_equal,
}  # fmt: skip


@dataclass(frozen=True)
class Forest:
    """One tree ensemble of a graph.

    Attributes
    ----------
    node : Node
        As the graph holds it.
    trees : tuple
        The roots that are left.
    weight : (n_trees,) float32
    shift : float
        Added to every target.
    targets : tuple of int
        Ids of the targets that trees give.
    """

    node: Node
    trees: tuple[Split | Leaf, ...]
    weight: Array
    shift: float
    targets: tuple[int, ...]

    @property
    def mean(self) -> bool:
        """Whether the operator divides by the number of trees."""
        return bool(self.node.get("aggregate_function", "SUM") == "AVERAGE")

    def layer(self, name: str, tap: str | None) -> Layer:
        """As the protocol describes it; the bytes are those of the operator."""
        nbytes = sum(entry.ByteSize() for entry in self.node.attrs.values())
        form = Form(FLOAT32, 32, nbytes=nbytes * len(self.trees) // max(1, self.n_read))
        weight = self.weight[None].copy()
        weight.flags.writeable = False
        bias = np.full(1, self.shift, np.float32)
        return Layer(name, "trees", weight, bias, 0, tap, form, (form,))

    @property
    def n_read(self) -> int:
        """Trees of the operator as the graph holds it."""
        return len(set(self.node.get("nodes_treeids")))

    @property
    def changed(self) -> bool:
        """Whether it is not what the graph holds."""
        plain = 1 / self.n_read if self.mean else 1
        same = len(self.trees) == self.n_read and (self.weight == np.float32(plain)).all()
        return not same or self.shift != 0

    def group(self, name: str) -> Group:
        """The trees as units."""
        index = np.arange(len(self.trees))[:, None]
        return Group(name, len(self.trees), (), (Member(name, 1, index),))

    def rows(self, x: Array, limit: int | None) -> Array:
        """(1, rows * targets, n_trees) float32: what each tree gives, evenly spaced rows."""
        x = np.asarray(x, np.float32).reshape(len(x), -1)
        n = len(self.targets)
        if limit is not None and len(x) * n > limit:
            x = x[np.linspace(0, len(x) - 1, max(1, limit // n)).round().astype(np.intp)]
        found = np.empty((len(x) * n, len(self.trees)), np.float32)
        for t, tree in enumerate(self.trees):
            found[:, t] = _outputs(tree, x, self.targets).ravel()
        return found[None]

    def kept(self, index: Array) -> Forest:
        """With these trees only."""
        trees = tuple(self.trees[int(k)] for k in index)
        return replace(self, trees=trees, weight=self.weight[index])

    def written(self) -> Node:
        """The operator with the weights multiplied into the leaves."""
        share = len(self.trees) if self.mean else 1
        pairs = zip(self.trees, self.weight, strict=True)
        made = node_of(self.node, [times(tree, float(w) * share) for tree, w in pairs])
        if self.shift == 0:
            return made
        base = [float(v) + self.shift for v in made.get("base_values") or self._zeros]
        return replace(made, attrs={**made.attrs, "base_values": attribute("base_values", base)})

    @property
    def _zeros(self) -> list[float]:
        if self.node.op == "TreeEnsembleRegressor":
            return [0.0] * int(self.node.get("n_targets", 1))
        names = self.node.get("classlabels_int64s") or self.node.get("classlabels_strings")
        # of two classes with one score the only base value is that score's
        return [0.0] * (1 if len(self.targets) == 1 and len(names) == 2 else len(names))


def find_forests(graph: Graph) -> dict[str, Forest]:
    """The tree ensembles of the main graph that are sums of trees, by a name of their own."""
    found: dict[str, Forest] = {}
    for node in graph.block.nodes:
        if node.domain != "ai.onnx.ml" or node.op not in KINDS:
            continue
        if node.get("aggregate_function", "SUM") not in ("SUM", "AVERAGE"):
            continue
        trees = read_trees(node)
        if trees is None or len(trees) < 2:
            continue
        kind, outputs = KINDS[node.op], {n for n in node.outputs if n}
        name = node.name or f"trees.{min(outputs)}"
        mean = node.get("aggregate_function", "SUM") == "AVERAGE"
        weight = np.full(len(trees), 1 / len(trees) if mean else 1, np.float32)
        targets = tuple(sorted(set(node.get(f"{kind}_ids"))))
        if name not in found and all(_known(tree) for tree in trees):
            found[name] = Forest(node, tuple(trees), weight, 0.0, targets)
    return found


def _known(tree: Split | Leaf) -> bool:
    return all(s.mode in _COMPARE for s in _flat(tree) if isinstance(s, Split))


def _flat(tree: Split | Leaf) -> list[Split | Leaf]:
    """All nodes, the root first."""
    found = [tree]
    for node in found:  # grows while it is read
        if isinstance(node, Split):
            found += [node.yes, node.no]
    return found


def _outputs(tree: Split | Leaf, x: Array, targets: tuple[int, ...]) -> Array:
    """(rows, targets) float32 that one tree gives."""
    found = np.zeros((len(x), len(targets)), np.float32)
    stack: list[tuple[Split | Leaf, Array]] = [(tree, np.arange(len(x)))]
    while stack:
        node, rows = stack.pop()
        if not len(rows):
            continue
        if isinstance(node, Leaf):
            for target, weight in node.weights:
                found[rows, targets.index(target)] += np.float32(weight)
            continue
        values = x[rows, node.feature]
        yes = _COMPARE[node.mode](values, np.float32(node.value))
        if node.missing:
            yes |= np.isnan(values)
        stack += [(node.yes, rows[yes]), (node.no, rows[~yes])]
    return found


def rewritten(graph: Graph, forests: Mapping[str, Forest]) -> None:
    """In place: put the forests that were changed into the graph."""
    graph.rewrite({f.node: [f.written()] for f in forests.values() if f.changed})
