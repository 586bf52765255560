"""Running ONNX models with onnxruntime: sessions, feeds, constant expressions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt._arrays import Array, as_ndarray
from fastopt._optional import package
from fastopt.errors import ArrayError, DTypeError, FormatError, OptionError, UnsupportedError
from fastopt.models.base import Input
from fastopt.models.given import index_of
from fastopt.models.onnx.files import load_onnx

__all__ = ["Feeds", "differing", "evaluate", "execute", "inputs_of", "session", "tensor_info"]

_ALIKE = 1e-3  # of the largest output: rounding in another order
_UNKNOWN = re.compile(
    "not a registered function/op|No Op registered|NOT_IMPLEMENTED|"
    "Could not find an implementation|Unsupported model IR version|"
    r"ONNX Runtime only \*guarantees\*|No opset import for domain"
)


def session(model: bytes, threads: int = 1, *, optimise: bool = True, where: str = "") -> Any:
    """An InferenceSession on the CPU, silent.

    Raises
    ------
    UnsupportedError
        onnxruntime lacks an operator or a version.
    FormatError
        It refuses the graph for another reason.
    """
    onnxruntime = package("onnxruntime", "running an ONNX model", "fastopt[onnx]")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if threads > 1:  # a thread that spins takes the core from the one it waits for
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors are no common class
        line = _first_line(error)
        kind = UnsupportedError if _UNKNOWN.search(str(error)) else FormatError
        prefix = f"{where}: " if where else ""
        raise kind(f"{prefix}onnxruntime does not load the model: {line}") from error


def execute(loaded: Any, names: Sequence[str], feed: Mapping[str, Array]) -> list[Any]:
    """Run a session; ArrayError where the model cannot take the feed."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    try:
        found = [_plain(a) for a in loaded.run(list(names), dict(feed), options)]
    except Exception as error:  # onnxruntime's own errors are no common class
        raise ArrayError(f"data: the model cannot run on them: {_first_line(error)}") from error
    return found


def differing(whole: Any, cut: Any, names: Sequence[str], feed: Mapping[str, Array]) -> str | None:
    """The first output of two graphs that is not the same but for rounding; None where all are."""
    found = (execute(session(g.to_proto().SerializeToString()), names, feed) for g in (whole, cut))
    for name, a, b in zip(names, *found, strict=True):
        scale = np.abs(np.nan_to_num(a)).max(initial=1e-6)
        same = np.shape(a) == np.shape(b)
        if not same or not np.allclose(a, b, rtol=0, atol=_ALIKE * scale, equal_nan=True):
            return str(name)
    return None


def _plain(output: Any) -> Any:
    """A ZipMap's list of dicts as an array, a column for each class in its order."""
    if isinstance(output, list) and output and all(isinstance(row, dict) for row in output):
        return np.array([list(row.values()) for row in output], np.float32)
    return output


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text[0])
    line = re.sub(r"^.*?Status Message: ", "", line)
    return line if len(line) <= 300 else line[:297] + "..."


def tensor_info(name: str, a: Array) -> Any:
    """A ValueInfoProto for an array."""
    helper = load_onnx().helper
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)


def inputs_of(infos: Sequence[Any]) -> tuple[Input, ...]:
    """The graph's inputs; UnsupportedError for sequences and maps."""
    onnx = load_onnx()
    found = []
    for info in infos:
        if not info.type.HasField("tensor_type"):
            raise UnsupportedError(f"input {info.name!r} is no tensor")
        tensor = info.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        shape: tuple[int | None, ...] = tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
            for d in tensor.shape.dim
        )
        found.append(Input(info.name, np.dtype(dtype).name, shape))
    return tuple(found)


class Feeds:
    """Data checked against a graph's inputs, and cut into what one run takes.

    Parameters
    ----------
    data : mapping of arrays by input name, or a sequence of them
        A mapping: an array with its input's rank has the rows on axis 0; with one rank more,
        axis 0 counts samples that are fed whole; a scalar input takes a scalar for all rows. A
        sequence: each mapping is one feed as it stands.
    inputs : sequence of Input

    Raises
    ------
    OptionError
        A name is missing, or data is no mapping.
    ArrayError
        A shape does not fit, lengths differ, or there is no row.
    """

    def __init__(self, data: Any, inputs: Sequence[Input]) -> None:
        self.inputs = tuple(inputs)
        self.parts: list[dict[str, Array]] | None = None
        self.arrays: dict[str, Array] = {}
        self.whole: set[str] = set()  # fed sample by sample
        self.fixed: set[str] = set()  # the same for all rows
        if isinstance(data, Mapping):
            self._check(data)
        elif isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
            self.parts = [self._feed(part) for part in data]
            self.n_rows = len(self.parts)
        elif len(self.inputs) == 1:
            self._check({self.inputs[0].name: data})
        else:
            raise OptionError(
                f"data: expected a mapping of arrays named {[i.name for i in self.inputs]}, "
                f"got {type(data).__name__}"
            )
        if self.n_rows == 0:
            raise ArrayError("data: expected at least one row, got none")

    def batches(self, batch_size: int | None) -> Iterator[dict[str, Array]]:
        """What ``session.run`` takes, one after the other."""
        if self.parts is not None:
            yield from self.parts
            return
        step = 1 if self.whole else self._step(batch_size)
        for start in range(0, self.n_rows, step):
            yield {
                name: (
                    a if name in self.fixed else a[start] if name in self.whole
                    else a[start : start + step]
                )
                for name, a in self.arrays.items()
            }  # fmt: skip

    def small(self, rows: int) -> tuple[dict[str, Array], int]:
        """A feed of that many rows where the graph allows it, and how many rows it has."""
        if self.parts is not None or self.whole:
            return next(self.batches(None)), 1
        feed = next(self.batches(rows))
        n = max((len(a) for k, a in feed.items() if k not in self.fixed), default=1)
        if n < rows and all(
            i.shape[:1] == (None,) for i in self.inputs if i.name not in self.fixed
        ):
            tiled = {k: a if k in self.fixed else a.repeat(rows, axis=0) for k, a in feed.items()}
            return tiled, rows
        return feed, n

    def take(self, index: Any) -> Any:
        """The data with these rows only."""
        at = index_of(index, self.n_rows)
        if self.parts is not None:
            return [self.parts[k] for k in at]
        return {n: a if n in self.fixed else a[at] for n, a in self.arrays.items()}

    def _step(self, batch_size: int | None) -> int:
        fixed = {i.shape[0] for i in self.inputs if i.name not in self.fixed}
        sizes = [n for n in fixed if n is not None]
        if sizes:
            size = sizes[0] if len(sizes) == 1 else 1
            if self.n_rows % size:
                raise ArrayError(
                    f"data: the model takes {size} rows at a time, {self.n_rows} is no multiple"
                )
            return size
        if batch_size is not None:
            return batch_size
        row = sum(a[:1].nbytes for n, a in self.arrays.items() if n not in self.fixed)
        return int(min(64, max(1, (4 << 20) // max(1, row))))

    def _feed(self, part: Any) -> dict[str, Array]:
        if not isinstance(part, Mapping):
            raise OptionError(f"data: expected mappings of arrays, got {type(part).__name__}")
        return {i.name: _fitting(_value(part, i), i, i.shape) for i in self.inputs}

    def _check(self, data: Mapping[str, Any]) -> None:
        lengths: dict[str, int] = {}
        for i in self.inputs:
            a, rank = _value(data, i), len(i.shape)
            if rank == 0:
                self.fixed.add(i.name) if a.ndim == 0 else self.whole.add(i.name)
                if a.ndim > 1:
                    raise ArrayError(f"data: {i.name} expected a scalar, got shape {a.shape}")
            elif a.ndim == rank + 1:
                self.whole.add(i.name)
            elif a.ndim != rank:
                raise ArrayError(
                    f"data: {i.name} expected {rank} axes {_shown(i.shape)}, or one more for "
                    f"samples fed whole, got shape {a.shape}"
                )
            if i.name in self.whole:
                self.arrays[i.name] = _fitting(a, i, (None, *i.shape))
            elif i.name in self.fixed:
                self.arrays[i.name] = _fitting(a, i, ())
            else:
                self.arrays[i.name] = _fitting(a, i, (None, *i.shape[1:]))
            if i.name not in self.fixed:
                lengths[i.name] = len(a)
        if len(set(lengths.values())) > 1:
            raise ArrayError(f"data: the arrays have different lengths, {lengths}")
        if self.whole:  # then every array is cut sample by sample: rows become feeds of one row
            for name in set(lengths) - self.whole:
                self.arrays[name] = self.arrays[name][:, None]
                self.whole.add(name)
        self.n_rows = next(iter(lengths.values()), 1)


def _value(data: Mapping[str, Any], i: Input) -> Array:
    if i.name not in data:
        raise OptionError(f"data: no array named {i.name!r}; it has {sorted(map(str, data))}")
    return as_ndarray(data[i.name], f"data[{i.name!r}]")


def _shown(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if d is None else str(d) for d in shape) + ")"


def _fitting(a: Array, i: Input, shape: tuple[int | None, ...]) -> Array:
    if a.ndim != len(shape) or any(
        wanted is not None and wanted != found
        for wanted, found in zip(shape, a.shape, strict=True)
    ):
        raise ArrayError(f"data: {i.name} expected shape {_shown(shape)}, got {a.shape}")
    if i.dtype == "object":
        return a.astype(object)
    wanted = np.dtype(i.dtype)
    if a.dtype == wanted:
        return a
    if not np.can_cast(a.dtype, wanted, "same_kind") and not (
        a.dtype.kind in "iub" and wanted.kind in "iuf"
    ):
        raise DTypeError(f"data: {i.name} expected {wanted}, got {a.dtype}")
    return a.astype(wanted)


def evaluate(graph: Any, name: str) -> Array:
    """The value of a constant expression of a :class:`Graph`."""
    onnx = load_onnx()
    maker = graph.producers()
    nodes, values, stack = {}, set(), [name]
    while stack:
        current = stack.pop()
        if current in maker:
            nodes[id(maker[current])] = maker[current]
            stack += [i for i in maker[current].inputs if i]
        else:
            values.add(current)
    part = graph.copy()
    order = [node for node in graph.block.walk() if id(node) in nodes]
    info = onnx.ValueInfoProto(name=name)
    part.block = type(graph.block)("part", (), (info,), tuple(order))
    part.values = {k: graph.values[k] for k in values if k in graph.values}
    part.opaque = {k: graph.opaque[k] for k in values if k in graph.opaque}
    loaded = session(part.to_proto().SerializeToString(), optimise=False)
    found: Array = loaded.run([name], {})[0]
    return found
