"""An ONNX model behind the protocol."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array, check_finite
from fastopt._files import write_whole
from fastopt._options import choice, flag, integer
from fastopt.errors import ArrayError, OptionError, UnsupportedError
from fastopt.models.base import FLOAT32, Form, Group, Input, Layer
from fastopt.models.onnx.compact import compact
from fastopt.models.onnx.edit import can_split, split_site, take_out
from fastopt.models.onnx.encode import LARGEST_SCALE, Coded, Narrow, encode, scale_kept
from fastopt.models.onnx.endings import Ending, ending_of
from fastopt.models.onnx.files import load_onnx, read_model
from fastopt.models.onnx.fold import fold
from fastopt.models.onnx.forms import forms_of, round_plainly, unsigned_codes
from fastopt.models.onnx.graph import Graph, Node
from fastopt.models.onnx.integer import (
    Rows8,
    can_run_dynamic,
    int8_rows,
    rows_to_int8,
    run_dynamic,
)
from fastopt.models.onnx.labels import Labels, groups_of, propagate
from fastopt.models.onnx.layers import Site, View, bias_of, find_sites
from fastopt.models.onnx.rows import input_rows, output_positions
from fastopt.models.onnx.rules import RULES
from fastopt.models.onnx.run import Feeds, evaluate, execute, inputs_of, session, tensor_info
from fastopt.models.onnx.shapes import shapes_of, synthetic_feed
from fastopt.models.onnx.static import Static, can_run_static, check_ranges, run_static
from fastopt.quantization import QuantizedArray

__all__ = ["OnnxModel"]

OLDEST_OPSET = 7  # before, operators broadcast by an attribute


@dataclass(frozen=True)
class Stored:
    """How a layer is kept, and the values that it computes with."""

    form: Form
    matrix: Array
    codes: QuantizedArray | None = None
    coded: Coded | None = None
    rows8: Rows8 | None = None
    ranges: Mapping[str, tuple[float, float]] | None = None


class OnnxModel:
    """An ONNX graph as compression sees it (:class:`fastopt.models.Model`).

    Parameters
    ----------
    source : path or onnx.ModelProto
        Opset 7 or newer; an older one can be run and saved, but has no layers. External data must
        be plain files in the model's folder.
    portable : bool
        Only forms that run-times which do not fold constants run well.

    Raises
    ------
    FormatError
        Damaged, truncated, cyclic, or external data outside the folder.
    UnsupportedError
        An operator, version or input kind that onnxruntime or fastopt does not know.

    Examples
    --------
    >>> import numpy as np, onnx
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> from fastopt.models import OnnxModel
    >>> w = np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32)
    >>> graph = helper.make_graph(
    ...     [helper.make_node("MatMul", ["x", "w"], ["y"])], "one",
    ...     [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
    ...     [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
    ...     [numpy_helper.from_array(w, "w")])
    >>> proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    >>> model = OnnxModel(proto)
    >>> before = model.nbytes
    >>> model.store("w", "int4g")
    >>> model.nbytes < before / 3
    True
    """

    def __init__(self, source: Any, *, portable: bool = False) -> None:
        self.portable = flag(portable, "portable")
        proto, path = read_model(source)
        self._graph = Graph.from_proto(proto, path)
        self._stored: dict[str, Stored] = {}
        self._changed = False
        self._feed: Mapping[str, Array] | None = None  # one row, once data were seen
        self._shapes: dict[str, tuple[int, ...]] = {}  # for that feed
        self._found: tuple[Labels, dict[str, Group], dict[str, Array], tuple[str, ...]] | None = (
            None
        )
        self._checked: frozenset[str] = frozenset()
        self._seen_rows = 1
        self._constants: dict[str, Array] = {}
        self._layers: dict[str, Layer] | None = None
        self._nbytes: int | None = None
        self._sites: dict[str, Site] = {}
        self._forget()
        self._changed = False  # then the file is written as it was read
        self.inputs: tuple[Input, ...] = inputs_of(self._graph.inputs)
        self._session((), 1)  # onnxruntime must know all of it

    def __repr__(self) -> str:
        path = self._graph.path
        where = "" if path is None else f"{path.name}, "
        return f"OnnxModel({where}{len(self.layers)} layers, {self.nbytes:,} bytes)"

    # --- what it is -----------------------------------------------------------------------

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self._graph.outputs

    @property
    def classes(self) -> Array | None:
        """Labels of the classes, where a classifier operator holds them."""
        return self._ending.labels

    @property
    def classes_axis(self) -> Mapping[str, int]:
        """Axis of the classes, for outputs that a Softmax or ArgMax makes."""
        return self._ending.axes

    @property
    def logits(self) -> Mapping[str, str]:
        """For each output the tensor before its last Softmax or Sigmoid."""
        return self._ending.logits

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layers in order of execution."""
        found = self._layers
        if found is None:
            found = {name: self._layer(site) for name, site in self._sites.items()}
            self._layers = found
        return found

    @property
    def groups(self) -> Mapping[str, Group]:
        """The coupling groups in order of execution, frozen ones with their reason."""
        return self._labelled()[1] if self._sites else {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Operators that the adapter does not know."""
        if self._graph.opset < OLDEST_OPSET:
            return (
                f"opset {self._graph.opset} is left as it is; "
                "onnx.version_converter makes a newer one",
            )
        return self._labelled()[3]

    @property
    def nbytes(self) -> int:
        """Bytes of the file that ``save`` would write."""
        if self._nbytes is None:
            self._nbytes = int(self._file_proto().ByteSize())
        return self._nbytes

    @property
    def n_params(self) -> int:
        """Number of parameters: elements of all floating-point constants and weights."""
        rest = sum(
            a.size
            for name, a in self._graph.values.items()
            if a.dtype.kind == "f" and name not in self._sites
        )
        return int(rest + sum(layer.weight.size for layer in self.layers.values()))

    @property
    def macs(self) -> int:
        """Multiply-adds of the layers for one input row, by the shapes of the last data seen."""
        return sum(layer.macs for layer in self.layers.values())

    # --- running --------------------------------------------------------------------------

    def n_rows(self, data: Any) -> int:
        """Check data against the inputs; the number of rows, samples or feeds that it holds."""
        return Feeds(data, self.inputs).n_rows

    def take(self, data: Any, index: Any) -> Any:
        """The rows, samples or feeds of that number."""
        return Feeds(data, self.inputs).take(index)

    def run(
        self,
        data: Any,
        taps: Sequence[str] = (),
        batch_size: int | None = None,
        weights: Mapping[str, Array] | None = None,
    ) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        """Outputs and tapped activations by name, batch by batch, in constant memory.

        ``weights`` gives layers other weights for this run alone (they then run in float).
        """
        feeds = Feeds(data, self.inputs)
        size = None if batch_size is None else integer(batch_size, "batch_size", low=1)
        wanted = tuple(dict.fromkeys(t for t in taps if t not in self.outputs))
        known = self._main_names
        unknown = [t for t in taps if t not in known]
        if unknown:
            raise OptionError(f"taps: no tensor named {unknown[0]!r} in the main graph")
        given = set(wanted) & {i.name for i in self.inputs}
        inner = tuple(t for t in wanted if t not in given)
        self._observe(feeds)
        # onnxruntime quantises an LSTM's states thread by thread: one thread, one answer
        alone = any(
            s.rows8 is not None and len(s.rows8.view.shape) > 2 for s in self._stored.values()
        )
        threads = 1 if alone else _threads.resolve(None, 1 << 30, 1)
        tried = {name: self._tried(name, a) for name, a in (weights or {}).items()}
        runner = self._session(inner, threads, probe=bool(tried))
        names = [*self.outputs, *inner]
        for feed in feeds.batches(size):
            found = dict(zip(names, execute(runner, names, feed | tried), strict=True))
            outputs = {name: found[name] for name in self.outputs}
            yield outputs, {t: feed[t] if t in given else found[t] for t in taps}

    def rows(self, layer: str, tapped: Array, limit: int | None = None) -> Array:
        """A layer's input rows, (n_blocks, rows, n_in) float32 (see the protocol)."""
        return input_rows(self._site(layer), tapped, limit)

    def runner(
        self, data: Any, batch_size: int | None = None, threads: int = 1
    ) -> Callable[[], object]:
        """Call it to run the first batch of ``data`` once, with the graph that is saved."""
        feed = next(Feeds(data, self.inputs).batches(batch_size))
        model = self._file_proto().SerializeToString()
        loaded = session(model, integer(threads, "threads", low=1))
        return lambda: loaded.run(None, feed)

    # --- edits ----------------------------------------------------------------------------

    def set_weight(self, layer: str, weight: Array, bias: Array | None = None) -> None:
        """In place: new values of the same shape, stored as float32; None keeps the bias."""
        site = self._site(layer)
        old = self.layers[layer]
        fresh = as_array(weight, "weight", cast="float32", shape=old.weight.shape)
        fresh = np.ascontiguousarray(fresh, np.float32)
        check_finite(fresh, "weight")
        rewritten = bias is not None and self._set_bias(site, bias)
        self._stored[layer] = Stored(self._form(layer, FLOAT32), fresh)
        self._forget(None if rewritten else layer)

    def store(
        self,
        layer: str,
        form: str,
        codes: QuantizedArray | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """In place: store (and run) the layer in one of its forms (see the protocol)."""
        site = self._site(layer)
        chosen = self._form(layer, form)
        matrix = self.layers[layer].weight
        if not chosen.integer and codes is not None:
            raise OptionError(f"codes: {form} takes none")
        if not chosen.integer:
            if chosen.bits == 16:
                matrix = matrix.astype(np.float16).astype(np.float32)
            self._stored[layer] = Stored(chosen, matrix)
        else:
            codes = round_plainly(matrix, chosen) if codes is None else codes
            unsigned, scale = unsigned_codes(codes, chosen, matrix.shape)
            if scale.size and not np.abs(scale).max() <= LARGEST_SCALE:
                raise ArrayError(f"codes: scales above {LARGEST_SCALE:.0f} cannot be stored")
            dtype = self._value(site.anchor).dtype.name
            scale = scale_kept(scale)
            coded = Coded(site.anchor, site.view, dtype, chosen.bits, unsigned, scale)
            matrix, rows8 = coded.matrix(), None
            if chosen.activations == "static":
                check_ranges(site, ranges)
            if chosen.activations is not None:
                bare = chosen.bits == 8 and chosen.group_size is None
                signed = (unsigned.astype(np.int16) - 128).astype(np.int8)
                rows8 = (
                    int8_rows(site, signed, scale[:, 0]) if bare else rows_to_int8(site, matrix)
                )
                matrix = rows8.matrix()
                coded = replace(
                    coded,
                    name=rows8.name,
                    view=rows8.view,
                    dtype="int8",
                    rows=None if bare else rows8.scale_kept,
                    rows_shape=rows8.scale_shape,
                )
            self._stored[layer] = Stored(
                chosen,
                matrix,
                codes,
                coded,
                rows8,
                ranges if chosen.activations == "static" else None,
            )
        self._forget(layer)

    def keep_units(
        self,
        group: str,
        index: Array,
        weights: Mapping[str, tuple[Array, Array | None]] | None = None,
    ) -> None:
        """In place: keep the group's units ``index`` only (see the protocol).

        The first cut of each group is checked: the sliced graph must compute what the whole one
        does with the units' columns set to zero.

        Raises
        ------
        UnsupportedError
            The group is frozen, a member is stored in fewer bits, or that check fails.
        """
        labels, groups, units, _ = self._labelled()
        choice(group, "group", groups)
        found = groups[group]
        given = np.asarray(index)
        kept = np.unique(given)
        if given.dtype.kind not in "iu" or given.ndim != 1 or not 0 < kept.size == given.size:
            raise ArrayError("index: expected the numbers of different units, at least one")
        if kept[0] < 0 or kept[-1] >= found.n_units:
            raise ArrayError(f"index: expected units 0..{found.n_units - 1}")
        if found.frozen is not None:
            raise UnsupportedError(f"group {group} is frozen: {found.frozen}")
        self._settle()
        members = (*found.producers, *found.consumers, *found.others)
        stored = [m.tensor for m in members if m.tensor in self._stored]
        if stored:
            raise UnsupportedError(f"group {group}: {stored[0]} is stored in fewer bits already")
        removed = np.delete(units[group], kept)
        trial = self._graph.copy()
        take_out(trial, labels, labels.removed(removed))
        if group not in self._checked:
            self._check_cut(trial, found, np.delete(np.arange(found.n_units), kept))
        self._checked |= {group}
        self._graph = trial
        self._constants = {}
        self._forget()
        for name, (weight, bias) in (weights or {}).items():
            self.set_weight(name, weight, bias)

    def _check_cut(self, trial: Graph, group: Group, removed: Array) -> None:
        """UnsupportedError unless the cut graph equals the whole one with columns of zeros."""
        assert self._feed is not None
        masked = self.copy()
        for member in group.consumers:
            weight = masked.layers[member.tensor].weight.copy()
            weight[:, member.index[removed].reshape(-1)] = 0
            masked.set_weight(member.tensor, weight)
        graphs = (masked._run_graph(), trial)
        whole, cut = (
            execute(session(g.to_proto().SerializeToString()), self.outputs, self._feed)
            for g in graphs
        )
        for name, a, b in zip(self.outputs, whole, cut, strict=True):
            scale = np.abs(np.nan_to_num(a)).max(initial=1e-6)
            if np.shape(a) != np.shape(b) or not np.allclose(
                a, b, rtol=0, atol=1e-3 * scale, equal_nan=True
            ):
                raise UnsupportedError(f"group {group.name}: output {name} changes when it is cut")

    def split_layer(self, layer: str, a: Array, b: Array) -> None:
        """In place: ``layer`` becomes ``layer.b`` (r, n_in), then ``layer.a`` (n_out, r)."""
        site = self._site(layer)
        n_out, n_in = self.layers[layer].weight.shape
        first = as_array(b, "b", cast="float32", shape=(None, n_in))
        second = as_array(a, "a", cast="float32", shape=(n_out, len(first)))
        if not can_split(site):
            raise UnsupportedError(f"{layer} ({site.kind}) cannot be split in two")
        if layer in self._stored and self._stored[layer].form.name != FLOAT32:
            raise UnsupportedError(f"{layer} is stored in fewer bits already")
        self._settle()
        split_site(self._graph, site, second, first)
        self._graph.prune()
        self._forget()

    def fold(self) -> tuple[str, ...]:
        """In place: merge operators where the function stays the same; what was done."""
        if self._graph.opset < OLDEST_OPSET:
            return ()
        self._settle()
        done = fold(self._graph, frozenset(self._stored))
        self._forget()
        return tuple(f"{n} {what}" for what, n in done.items())

    def copy(self) -> OnnxModel:
        """An independent copy; arrays and nodes are shared."""
        twin = object.__new__(OnnxModel)
        twin.__dict__.update(self.__dict__)
        twin._graph = self._graph.copy()
        twin._stored = dict(self._stored)
        twin._sessions = {}
        return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model: checked by onnx and loaded by onnxruntime first, then whole at once."""
        onnx = load_onnx()
        target = Path(path)
        if self._graph.path is not None and target.exists() and target.samefile(self._graph.path):
            raise OptionError(f"path: {path} is the model that was read; give another name")
        proto = self._file_proto()
        data = proto.SerializeToString()
        onnx.checker.check_model(data)
        session(data, where=os.fspath(path))
        with write_whole(target) as file:
            file.write(data)

    def to_proto(self) -> Any:
        """The ModelProto that ``save`` writes."""
        return self._file_proto()

    # --- inside ---------------------------------------------------------------------------

    def _settle(self) -> None:
        """In place: put new float values into the graph itself, before its structure changes."""
        plain = {k: s for k, s in self._stored.items() if s.form.name == FLOAT32}
        if plain:
            self._float_values(self._graph, plain)
            self._stored = {k: s for k, s in self._stored.items() if k not in plain}

    def _forget(self, layer: str | None = None) -> None:
        """After an edit of the graph, or of one layer's values alone: drop what was derived."""
        self._changed = True
        self._nbytes = None
        self._sessions: dict[tuple[tuple[str, ...], int, bool], Any] = {}
        if layer is not None and self._layers is not None:
            self._layers = {**self._layers, layer: self._layer(self._sites[layer])}
        else:
            self._layers = None
        if layer is None:
            self._shapes, self._found = {}, None
            self._consumers = self._graph.consumers()
            old = self._graph.opset < OLDEST_OPSET
            self._sites, self._constant = (
                ({}, set()) if old else find_sites(self._graph, self._value)
            )
            self._main_names = {i.name for i in self._graph.inputs} | {
                name for node in self._graph.block.nodes for name in node.outputs
            }
            self._ending: Ending = ending_of(self._graph)

    def _value(self, name: str) -> Array:
        """A constant, or the value of a constant expression."""
        if name in self._graph.values:
            return self._graph.values[name]
        if name not in self._constants:
            self._constants[name] = evaluate(self._graph, name)
        return self._constants[name]

    def _site(self, layer: str) -> Site:
        if layer not in self._sites:
            raise OptionError(f"layer: no layer named {layer!r}")
        return self._sites[layer]

    def _form(self, layer: str, name: str) -> Form:
        choice(name, "form", [form.name for form in self.layers[layer].forms])
        found = self.layers[layer].form_named(name)
        assert found is not None
        return found

    def _layer(self, site: Site) -> Layer:
        stored = self._stored.get(site.anchor)
        matrix = (
            np.asarray(site.view.matrix(self._value(site.anchor)), np.float32)
            if stored is None
            else stored.matrix
        )
        matrix = np.ascontiguousarray(matrix)
        matrix.flags.writeable = False
        dynamic, static = self._int8_runs(site)
        forms = forms_of(matrix, dynamic=dynamic, static=static, portable=self.portable)
        own = self._own_form(site, matrix, forms)
        if own not in forms:
            forms = (own, *forms)
        bias = bias_of(self._graph, site, self._consumers)
        use = site.uses[0] if site.uses else None
        tap = None if use is None else use.node.inputs[use.data]
        if use is not None and site.kind == "recurrent" and use.weight == 2:
            tap = use.node.outputs[0]
        if site.kind == "embedding" or tap not in self._main_names or tap in self._constant:
            tap = None
        output = None if use is None else use.node.outputs[0]
        positions = 0 if self._feed is None else output_positions(site, self._known_shapes())
        return Layer(
            site.anchor,
            site.kind,
            matrix,
            None if bias is None else self._bias(bias[0], stored),
            0 if site.kind == "embedding" else positions * matrix.size // self._seen_rows,
            tap,
            own if stored is None else stored.form,
            forms,
            output if output in self._main_names else None,
            site.n_blocks,
            max(1, len(site.uses)),
            site.axes,
            None if stored is None else stored.codes,
        )

    def _bias(self, name: str, stored: Stored | None) -> Array:
        bias = np.asarray(self._graph.values[name], np.float32).ravel()
        if stored is not None and name in self._half_biases():
            bias = bias.astype(np.float16).astype(np.float32)
        return bias

    def _int8_runs(self, site: Site) -> tuple[bool, bool]:
        if self._value(site.anchor).dtype != np.float32:
            return False, False
        return can_run_dynamic(self._graph, site), can_run_static(self._graph, site)

    def _own_form(self, site: Site, matrix: Array, forms: tuple[Form, ...]) -> Form:
        """The form that the file has now."""
        if site.anchor in self._graph.values:
            name = {"float32": FLOAT32, "float16": "float16"}.get(
                self._graph.values[site.anchor].dtype.name, "float64"
            )
            known = {form.name: form for form in forms}
            return known.get(name) or Form(name, 64, nbytes=8 * matrix.size)
        parts = self._expression(site.anchor)
        nbytes = sum(self._graph.values[p].nbytes for p in parts if p in self._graph.values)
        return Form("as is", 8 * nbytes // max(1, matrix.size), nbytes=nbytes)

    def _expression(self, name: str) -> set[str]:
        """Constants that a constant expression is made of."""
        maker = self._graph.producers()
        found, stack = set(), [name]
        while stack:
            current = stack.pop()
            if current in maker:
                stack += [i for i in maker[current].inputs if i]
            else:
                found.add(current)
        return found

    def _set_bias(self, site: Site, bias: Array) -> bool:
        """Replace the layer's bias, or give it one: True where that changes the graph."""
        n_out = site.view.n_out
        fresh = as_array(bias, "bias", cast="float32", shape=(n_out,))
        fresh = np.ascontiguousarray(fresh, np.float32)
        check_finite(fresh, "bias")
        found = bias_of(self._graph, site, self._consumers)
        dtype = self._value(site.anchor).dtype
        if found is not None:
            name = found[0]
            self._graph.values[name] = fresh.astype(dtype).reshape(self._graph.values[name].shape)
            return False
        if not site.direct or len(site.uses) != 1 or site.kind not in ("dense", "conv"):
            raise OptionError(f"bias: {site.anchor} ({site.kind}) has no place for one")
        node = site.uses[0].node
        name = self._graph.fresh(f"{site.anchor}.bias")
        change: dict[Node, list[Node]]
        plain = node.get("alpha", 1.0) == 1.0 and node.get("beta", 1.0) == 1.0
        if node.op != "MatMul" and plain and len(node.inputs) == 2:
            change = {node: [replace(node, inputs=(*node.inputs, name))]}
        else:
            inner = self._graph.fresh(f"{node.outputs[0]}.unbiased")
            shape = (n_out, *[1] * (len(site.view.shape) - 2)) if node.op == "Conv" else (n_out,)
            if site.uses[0].weight == 0:
                shape = (n_out, 1)
            fresh = fresh.reshape(shape)
            added = Node("Add", "", (inner, name), node.outputs)
            change = {node: [replace(node, outputs=(inner,)), added]}
        self._graph.values[name] = fresh.astype(dtype)
        self._graph.rewrite(change)
        return True

    def _float_values(self, graph: Graph, stored: Mapping[str, Stored]) -> None:
        """In place: put layers' values in ``graph`` as plain constants."""
        change: dict[Node, list[Node]] = {}
        maker = self._graph.producers()
        for name, entry in stored.items():
            site = self._sites[name]
            dtype = self._value(name).dtype
            if name in maker:  # the expression that made it goes
                node = maker[name]
                change[node] = []
            tensor = site.view.tensor(entry.matrix).astype(dtype, copy=False)
            graph.values[name] = tensor
        for name in self._half_biases():
            graph.values[name] = graph.values[name].astype(np.float16).astype(np.float32)
        graph.rewrite(change)
        integer = {k: s for k, s in stored.items() if s.rows8 is not None}
        dynamic = {k: s.rows8 for k, s in integer.items() if s.rows8 and not s.ranges}
        static = {k: Static(s.rows8, s.ranges) for k, s in integer.items() if s.rows8 and s.ranges}
        run_static(graph, self._sites, static)
        run_dynamic(graph, self._sites, dynamic)

    def _half_biases(self) -> list[str]:
        """Biases of layers stored in fewer bits, which float16 holds well: it keeps them."""
        found = []
        for layer, stored in self._stored.items():
            bias = bias_of(self._graph, self._sites[layer], self._consumers)
            if stored.form.bits > 16 or bias is None or self.portable:
                continue
            a = self._graph.values[bias[0]]
            if a.dtype == np.float32 and a.size >= 16 and np.abs(a).max() < 65504:
                found.append(bias[0])
        return found

    def _run_graph(self) -> Graph:
        graph = self._graph.copy()
        if self._stored:
            self._float_values(graph, self._stored)
            graph.prune()
        return graph

    def _file_proto(self) -> Any:
        graph = self._run_graph()
        if not self._changed:
            return graph.to_proto()
        coded = [s.coded for s in self._stored.values() if s.coded is not None]
        narrow = [
            Narrow(name, self._sites[name].view, s.matrix)
            for name, s in self._stored.items()
            if s.form.name == "float16" and self._value(name).dtype.name == "float32"
        ]
        for name in self._half_biases():
            if name in graph.values:
                bias = graph.values[name]
                narrow.append(Narrow(name, View.rows(bias.shape, 1), bias))
        return compact(encode(graph, coded, narrow)).to_proto()

    def _tried(self, layer: str, weight: Array) -> Array:
        site, shape = self._site(layer), self.layers[layer].weight.shape
        fresh = as_array(weight, "weights", cast="float32", shape=shape)
        return site.view.tensor(fresh).astype(self._value(layer).dtype, copy=False)

    def _session(self, taps: tuple[str, ...], threads: int, *, probe: bool = False) -> Any:
        """A session for the model as it is; with ``probe`` every weight can be fed."""
        key = (taps, threads, probe)
        if key not in self._sessions:
            if probe:
                graph = self._graph.copy()
                every = {k: Stored(v.form, v.weight) for k, v in self.layers.items()}
                self._float_values(graph, every)
                proto = graph.to_proto()
                for name in every:
                    proto.graph.input.append(tensor_info(name, graph.values[name]))
            else:
                proto = self._run_graph().to_proto()
            for name in taps:
                proto.graph.output.add(name=name)
            where = "" if self._graph.path is None else str(self._graph.path)
            kept = {k: s for k, s in self._sessions.items() if k[2] != probe}
            self._sessions = kept | {key: session(proto.SerializeToString(), threads, where=where)}
        return self._sessions[key]

    def _observe(self, feeds: Feeds) -> None:
        """Note the shapes for one small feed; they give the multiply-adds and the groups."""
        if self._feed is not None:
            return
        self._feed = next(feeds.batches(1))
        first = next((i for i in self.inputs if i.shape and i.name not in feeds.fixed), None)
        if first is not None and first.name not in feeds.whole and feeds.parts is None:
            self._seen_rows = max(1, len(self._feed[first.name]))
        self._shapes = {}
        self._layers = self._found = None

    def _known_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes for the feed seen, or for one made up."""
        if self._feed is None:
            self._feed = synthetic_feed(self._graph, self.inputs)
        if not self._shapes:
            self._shapes = shapes_of(self._graph, self._feed)
        return self._shapes

    def _labelled(self) -> tuple[Labels, dict[str, Group], dict[str, Array], tuple[str, ...]]:
        """Labels, groups, the groups' units, and notes."""
        if self._found is None:
            labels, notes = propagate(self._graph, self._known_shapes(), RULES)
            groups, units = groups_of(labels, self._sites, self._graph.values)
            self._found = (labels, groups, units, tuple(notes))
        return self._found
