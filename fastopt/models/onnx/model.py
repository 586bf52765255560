"""An ONNX model behind the protocol."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array, check_finite
from fastopt._files import path_of, storage_errors, write_whole
from fastopt._options import choice, flag, integer
from fastopt.errors import ArrayError, FastoptError, OptionError, UnsupportedError
from fastopt.models.base import FLOAT32, Form, Group, Input, Layer
from fastopt.models.given import (
    batch_of,
    codes_of,
    fitted_of,
    limit_of,
    numbers,
    taps_of,
    tried_of,
)
from fastopt.models.labels import Labels, groups_of, propagate
from fastopt.models.onnx.build import Stored, encoded, half_biases, put_values, stored_as
from fastopt.models.onnx.compact import compact
from fastopt.models.onnx.describe import ends_of, layer_of
from fastopt.models.onnx.edit import can_split, set_bias, split_site, take_out
from fastopt.models.onnx.endings import Ending, ending_of
from fastopt.models.onnx.files import load_onnx, read_model
from fastopt.models.onnx.fold import fold
from fastopt.models.onnx.forests import Forest, find_forests, rewritten
from fastopt.models.onnx.graph import Graph
from fastopt.models.onnx.layers import Site, bias_of, find_sites
from fastopt.models.onnx.rows import input_rows, multiply_adds
from fastopt.models.onnx.rules import RULES
from fastopt.models.onnx.run import (
    Feeds,
    differing,
    evaluate,
    execute,
    inputs_of,
    session,
    tensor_info,
)
from fastopt.models.onnx.shapes import shapes_of, synthetic_feed
from fastopt.models.onnx.trees import thin_trees
from fastopt.quantization import QuantizedArray

__all__ = ["OnnxModel"]

OLDEST_OPSET = 7  # before, operators broadcast by an attribute


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
        self._checked: set[tuple[str, int]] = set()  # shared by copies
        self._seen_rows = 1
        self._constants: dict[str, Array] = {}
        self._layers: dict[str, Layer] | None = None
        self._nbytes: int | None = None
        self._sites: dict[str, Site] = {}
        self._forests: dict[str, Forest] = {}
        self._sessions: dict[tuple[tuple[str, ...], int, bool], Any] = {}
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
            found |= {
                name: forest.layer(name, self._tap(forest.node.inputs[0]))
                for name, forest in self._forests.items()
            }
            self._layers = found
        return found

    @property
    def groups(self) -> Mapping[str, Group]:
        """The coupling groups in order of execution, frozen ones with their reason."""
        found = self._labelled()[1] if self._sites else {}
        return {**found, **{name: f.group(name) for name, f in self._forests.items()}}

    @property
    def notes(self) -> tuple[str, ...]:
        """Operators that the adapter does not know."""
        if self._graph.opset < OLDEST_OPSET:
            return (
                f"opset {self._graph.opset} is left as it is; "
                "onnx.version_converter makes a newer one",
            )
        known = tuple(f"{forest.node.op} (" for forest in self._forests.values())
        return tuple(note for note in self._labelled()[3] if not note.startswith(known))

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
        return int(rest + sum(self.layers[name].weight.size for name in self._sites))

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
        tried = tried_of(weights, self)
        trees = {k: w for k, w in tried.items() if k in self._forests}
        if trees:
            twin = self.copy()
            for name, weight in trees.items():
                twin.set_weight(name, weight)
            rest = {k: w for k, w in tried.items() if k not in trees}
            yield from twin.run(data, taps, batch_size, rest)
            return
        feeds = Feeds(data, self.inputs)
        size, asked = batch_of(batch_size), taps_of(taps, self._main_names)
        wanted = tuple(t for t in asked if t not in self.outputs)
        given = set(wanted) & {i.name for i in self.inputs}
        inner = tuple(t for t in wanted if t not in given)
        self._observe(feeds)
        # onnxruntime quantises an LSTM's states thread by thread: one thread, one answer
        alone = any(
            s.rows8 is not None and len(s.rows8.view.shape) > 2 for s in self._stored.values()
        )
        threads = 1 if alone else _threads.resolve(None, 1 << 30, 1)
        fed = {name: self._tried(name, a) for name, a in tried.items()}
        runner = self._session(inner, threads, probe=bool(fed))
        names = [*self.outputs, *inner]
        for feed in feeds.batches(size):
            found = dict(zip(names, execute(runner, names, feed | fed), strict=True))
            outputs = {name: found[name] for name in self.outputs}
            yield outputs, {t: feed[t] if t in given else found[t] for t in asked}

    def rows(self, layer: str, tapped: Array, limit: int | None = None) -> Array:
        """A layer's input rows, (n_blocks, rows, n_in) float32 (see the protocol)."""
        x, most = numbers(tapped, "tapped"), limit_of(limit)
        try:
            if self._known(layer) in self._forests:
                return self._forests[layer].rows(tapped, most)
            return input_rows(self._site(layer), x, most)
        except (ValueError, IndexError) as error:
            raise ArrayError(f"tapped: not what feeds {layer}: {error}") from None

    def runner(
        self, data: Any, batch_size: int | None = None, threads: int = 1
    ) -> Callable[[], object]:
        """Call it to run the first batch of ``data`` once, with the graph that is saved."""
        feed = next(Feeds(data, self.inputs).batches(batch_of(batch_size)))
        model = self._file_proto().SerializeToString()
        loaded = session(model, _threads.resolve(integer(threads, "threads", low=1), 1))
        return lambda: loaded.run(None, feed)

    # --- edits ----------------------------------------------------------------------------

    def set_weight(self, layer: str, weight: Array, bias: Array | None = None) -> None:
        """In place: new values of the same shape, stored as float32; None keeps the bias."""
        old = self.layers[self._known(layer)]
        fresh = as_array(weight, "weight", cast="float32", shape=old.weight.shape)
        fresh = np.ascontiguousarray(fresh, np.float32)
        check_finite(fresh, "weight")
        if layer in self._forests:
            self._weigh(layer, fresh[0], bias)
            return
        moved = bias is not None and self._set_bias(self._site(layer), bias)
        self._stored[layer] = Stored(self._form(layer, FLOAT32), fresh)
        self._forget(None if moved else layer)

    def store(
        self,
        layer: str,
        form: str,
        codes: QuantizedArray | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """In place: store (and run) the layer in one of its forms (see the protocol)."""
        site = self._site(layer)
        chosen, old = self._form(layer, form), self.layers[layer]
        given = codes_of(codes, old)
        self._stored[layer] = stored_as(site, chosen, old.weight, given, ranges)
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
        found = self.groups[choice(group, "group", self.groups)]
        kept = found.kept(index)
        fitted = fitted_of(weights, {m.tensor for m in (*found.producers, *found.consumers)})
        edited = self.copy()
        edited._cut(found, kept, fitted)
        vars(self).update(vars(edited))

    def _cut(
        self, found: Group, kept: Array, weights: Mapping[str, tuple[Array, Array | None]]
    ) -> None:
        """In place, and half done where it is refused: the group's units ``kept`` only."""
        group = found.name
        if group in self._forests:
            self._keep_trees(group, kept, weights.get(group))
            return
        labels, _, units, _ = self._labelled()
        self._settle()
        members = (*found.producers, *found.consumers, *found.others)
        stored = [m.tensor for m in members if m.tensor in self._stored]
        if stored:
            raise UnsupportedError(f"group {group}: {stored[0]} is stored in fewer bits already")
        removed = np.delete(units[group], kept)
        trial = self._graph.copy()
        shapes = take_out(trial, labels, labels.removed(removed))
        if (group, found.n_units) not in self._checked:
            self._check_cut(trial, found, np.delete(np.arange(found.n_units), kept))
            self._checked.add((group, found.n_units))
        self._graph = trial
        self._constants = {}
        self._forget()
        self._shapes = shapes
        for name, (weight, bias) in weights.items():
            self.set_weight(name, weight, bias)

    def _keep_trees(
        self, name: str, index: Array, fitted: tuple[Array, Array | None] | None
    ) -> None:
        self._forests = {**self._forests, name: self._forests[name].kept(index)}
        self._changed_forest()
        if fitted is not None:
            self.set_weight(name, *fitted)

    def _weigh(self, name: str, weight: Array, bias: Array | None) -> None:
        old = self._forests[name]
        shift = old.shift if bias is None else float(as_array(bias, "bias", shape=(1,))[0])
        self._forests = {**self._forests, name: replace(old, weight=weight, shift=shift)}
        self._changed_forest()

    def _changed_forest(self) -> None:
        self._changed, self._nbytes, self._layers, self._sessions = True, None, None, {}

    def _check_cut(self, trial: Graph, group: Group, removed: Array) -> None:
        """UnsupportedError unless the cut graph equals the whole one with columns of zeros."""
        assert self._feed is not None
        masked = self.copy()
        for member in group.consumers:
            weight = masked.layers[member.tensor].weight.copy()
            weight[:, member.index[removed].reshape(-1)] = 0
            masked.set_weight(member.tensor, weight)
        changed = differing(masked._run_graph(), trial, self.outputs, self._feed)
        if changed is not None:
            raise UnsupportedError(f"group {group.name}: output {changed} changes when it is cut")

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
        made, shapes = site.uses[0].node.outputs[0], self._shapes
        between = split_site(self._graph, site, second, first)
        self._graph.prune()
        self._forget()
        if made in shapes:
            axis = 1 if site.kind == "conv" else len(shapes[made]) - 1
            thin = tuple(len(first) if k == axis else n for k, n in enumerate(shapes[made]))
            known = {name: a.shape for name, a in self._graph.values.items()}
            self._shapes = {**shapes, **known, between: thin}

    def fold(self) -> tuple[str, ...]:
        """In place: merge operators where the function stays the same; what was done."""
        if self._graph.opset < OLDEST_OPSET:
            return ()
        self._settle()
        done = fold(self._graph, frozenset(self._stored))
        saved = thin_trees(self._graph)
        self._constants = {}
        self._forget()
        notes = [f"{n} {what}" for what, n in done.items()]
        if saved:
            notes.append(f"tree ensembles thinned by {saved} bytes")
        return tuple(notes)

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
        target = Path(path_of(path))
        source = self._graph.path
        with storage_errors(os.fspath(target)):
            same = source is not None and target.exists() and target.samefile(source)
        if same:
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
        rewritten(self._graph, self._forests)
        plain = {k: s for k, s in self._stored.items() if s.form.name == FLOAT32}
        if plain:
            put_values(self._graph, self._sites, plain)
            self._stored = {k: s for k, s in self._stored.items() if k not in plain}

    def _forget(self, layer: str | None = None) -> None:
        """After an edit of the graph, or of one layer's values alone: drop what was derived."""
        self._changed = True
        self._nbytes = None
        self._sessions = {}
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
            self._forests = {} if old else find_forests(self._graph)
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

    def _known(self, layer: str) -> str:
        return choice(layer, "layer", {**self._sites, **self._forests})

    def _site(self, layer: str) -> Site:
        if self._known(layer) in self._forests:
            raise UnsupportedError(f"{layer}: a tree ensemble has no other form")
        return self._sites[layer]

    def _tap(self, name: str | None) -> str | None:
        """A tensor that can be observed: one of the main graph that is no constant."""
        return name if name in self._main_names and name not in self._constant else None

    def _form(self, layer: str, name: str) -> Form:
        choice(name, "form", [form.name for form in self.layers[layer].forms])
        found = self.layers[layer].form_named(name)
        assert found is not None
        return found

    def _layer(self, site: Site) -> Layer:
        stored, value = self._stored.get(site.anchor), self._value(site.anchor)
        macs = 0
        if self._feed is not None:
            size = value.size if stored is None else stored.matrix.size
            with contextlib.suppress(ArrayError):  # two rows alone do not run: nothing is known
                macs = multiply_adds(site, self._known_shapes(), size)
        tap, output = ends_of(site)
        bias = bias_of(self._graph, site, self._consumers)
        return layer_of(
            self._graph,
            site,
            stored,
            value,
            bias=None if bias is None else self._bias(bias[0], stored),
            macs=macs // self._seen_rows,
            tap=self._tap(tap),
            output=output if output in self._main_names else None,
            portable=self.portable,
        )

    def _bias(self, name: str, stored: Stored | None) -> Array:
        bias = np.asarray(self._graph.values[name], np.float32).ravel()
        if stored is not None and name in self._halved():
            bias = bias.astype(np.float16).astype(np.float32)
        return bias

    def _set_bias(self, site: Site, bias: Array) -> bool:
        """Replace the layer's bias, or give it one: True where that changes the graph."""
        fresh = as_array(bias, "bias", cast="float32", shape=(site.view.n_out,))
        fresh = np.ascontiguousarray(fresh, np.float32)
        check_finite(fresh, "bias")
        return set_bias(self._graph, site, fresh, bias_of(self._graph, site, self._consumers))

    def _halved(self) -> list[str]:
        """Biases that are kept in float16."""
        if self.portable:
            return []
        return half_biases(self._graph, self._sites, self._stored, self._consumers)

    def _run_graph(self) -> Graph:
        """The graph that is run: weights decoded, where decoding at load gives the same bits."""
        graph = self._graph.copy()
        rewritten(graph, self._forests)
        if self._stored:
            put_values(graph, self._sites, self._stored, self._halved())
            graph.prune()
        # a DequantizeLinear may be merged into what follows, so it is run as it will be saved
        return encoded(graph, self._sites, self._stored, portable=True) if self.portable else graph

    def _file_proto(self) -> Any:
        graph = self._run_graph()
        if not self._changed:
            return graph.to_proto()
        if not self.portable:
            graph = encoded(graph, self._sites, self._stored, self._halved())
        return compact(graph).to_proto()

    def _tried(self, layer: str, weight: Array) -> Array:
        site, shape = self._site(layer), self.layers[layer].weight.shape
        fresh = as_array(weight, "weights", cast="float32", shape=shape)
        return site.view.tensor(fresh).astype(site.dtype, copy=False)

    def _session(self, taps: tuple[str, ...], threads: int, *, probe: bool = False) -> Any:
        """A session for the model as it is; with ``probe`` every weight can be fed."""
        key = (taps, threads, probe)
        if key not in self._sessions:
            if probe:
                graph = self._graph.copy()
                rewritten(graph, self._forests)
                every = {
                    k: Stored(self.layers[k].form, self.layers[k].weight) for k in self._sites
                }
                put_values(graph, self._sites, every)
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
        # two rows: what holds for one alone (a shape with the batch in it) is found out
        self._feed, self._seen_rows = feeds.small(2)
        self._shapes = {}
        self._layers = self._found = None

    def _known_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes for the feed seen, or for one made up."""
        if self._feed is None:
            self._feed = synthetic_feed(self._graph, self.inputs)
            free = [i.name for i in self.inputs if i.shape[:1] == (None,)]
            self._seen_rows = len(self._feed[free[0]]) if free else 1
        if not self._shapes:
            self._shapes = shapes_of(self._graph, self._feed)
        return self._shapes

    def _labelled(self) -> tuple[Labels, dict[str, Group], dict[str, Array], tuple[str, ...]]:
        """Labels, groups, the groups' units, and notes."""
        if self._found is None:
            try:
                shapes = self._known_shapes()
            except FastoptError as error:
                return Labels({}), {}, {}, (f"no groups: {error}",)
            labels, notes = propagate(self._graph, shapes, RULES)
            groups, units = groups_of(labels, self._sites, self._graph.values)
            self._found = (labels, groups, units, tuple(notes))
        return self._found
