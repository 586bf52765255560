"""The rows that a compression is calibrated, searched and checked on.

A source holds named arrays (or one file per feed) and is read when it is asked for, so data may be
larger than memory. ``Rows`` is a selection of a source's rows, cut into feeds for one model.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import math
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from fastopt._arrays import Array, as_array, as_ndarray
from fastopt._files import storage_errors
from fastopt._optional import package
from fastopt.errors import (
    ArrayError,
    DTypeError,
    FormatError,
    MissingFileError,
    OptionError,
    UnsupportedError,
)
from fastopt.models.base import Input, Model

__all__ = ["Columns", "Feed", "Rows", "load_object", "open_rows", "open_source"]

Feed: TypeAlias = "dict[str, Array]"

_UNPACKED_LIMIT = 64 << 30  # bytes of a compressed archive that are unpacked to disk at most


class Source(Protocol):
    """Named arrays whose rows are read on demand."""

    names: tuple[str, ...]
    n: int | None

    def shape(self, name: str) -> tuple[int, ...]: ...
    def take(self, name: str, index: Array) -> Array: ...


# --- sources ------------------------------------------------------------------------------


class _Arrays:
    """Arrays in memory, or mapped from a file."""

    def __init__(self, arrays: Mapping[str, Array], keep: object = None) -> None:
        self._arrays = dict(arrays)
        self._keep = keep  # a temporary folder that lives as long as its maps
        self.names = tuple(self._arrays)
        self.n: int | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        found: tuple[int, ...] = self._arrays[name].shape
        return found

    def take(self, name: str, index: Array) -> Array:
        a = self._arrays[name]
        return np.asarray(a[index]) if a.ndim else np.asarray(a)


class _Files:
    """A folder: every file is one feed, taken as it is."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self.n: int | None = len(self._paths)
        self._last: tuple[int, dict[str, Array]] | None = None
        self.names = tuple(self._read(0))

    def shape(self, name: str) -> tuple[int, ...]:
        found: tuple[int, ...] = self._read(0)[name].shape
        return found

    def take(self, name: str, index: Array) -> Array:
        (k,) = index
        found = self._read(int(k))
        if name not in found:
            raise FormatError(
                f"expected an array named {name}, found {sorted(found)}", str(self._paths[int(k)])
            )
        return found[name]

    def _read(self, k: int) -> dict[str, Array]:
        if self._last is None or self._last[0] != k:
            self._last = (k, _npz(self._paths[k], mapped=False)[0])
        return self._last[1]


def open_source(data: Any, name: str = "data", inputs: Sequence[str] = ()) -> Source:
    """Whatever a user calls data as a source of named arrays.

    Parameters
    ----------
    data : path, ``"module:function"``, mapping of arrays, (X, y) or X
        A path is an .npz, an .npy, a .parquet file or a folder of .npz files; a function returns
        any of the others. An array without a name is the model's only input.
    inputs : sequence of str
        The names of the model's inputs.
    """
    if isinstance(data, (_Arrays, _Files)):
        return data
    if isinstance(data, (str, os.PathLike)):
        text = os.fspath(data)
        if not os.path.exists(text) and ":" in text and not text.endswith((".npz", ".npy")):
            return open_source(load_object(text, name)(), name, inputs)
        return _open_path(Path(text), name, inputs)
    if isinstance(data, Mapping):
        return _Arrays({str(k): _column(v, f"{name}[{k!r}]") for k, v in data.items()})
    if isinstance(data, tuple):
        if len(data) != 2:
            raise OptionError(f"{name}: expected (X, y) or X, got a tuple of {len(data)}")
        return _Arrays({_only(inputs, name): _column(data[0], name), "y": _column(data[1], "y")})
    return _Arrays({_only(inputs, name): _column(data, name)})


def _open_path(path: Path, name: str, inputs: Sequence[str]) -> Source:
    if os.path.isdir(path):
        paths = sorted(path.glob("*.npz"))
        if not paths:
            raise FormatError("expected a folder of .npz files, found none", str(path))
        return _Files(paths)
    if not os.path.exists(path):
        raise MissingFileError(errno.ENOENT, f"{name}: no such file", str(path))
    if path.suffix == ".npz":
        arrays, keep = _npz(path, mapped=True)
        return _Arrays(_renamed(arrays, inputs), keep)
    if path.suffix == ".npy":
        with _reading(path, ".npy"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        return _Arrays({_only(inputs, name): array})
    if path.suffix == ".parquet":
        return _Arrays(_parquet(path, inputs))
    raise UnsupportedError(
        f"{path}: expected an .npz, .npy or .parquet file, a folder of .npz files or "
        "module:function"
    )


def _npz(path: Path, mapped: bool) -> tuple[dict[str, Array], object]:
    """The arrays of an .npz file, nothing unpickled; mapped from disk where that is asked."""
    with _reading(path, ".npz"):
        if not mapped:
            with np.load(path, allow_pickle=False) as file:
                return {k: file[k] for k in file.files}, None
        return _mapped(path)


@contextlib.contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """FormatError for what is no such file; StorageError for what the system refuses."""
    with storage_errors(str(path)):
        try:
            yield
        except FormatError:
            raise
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            raise FormatError(f"cannot be read as {kind}: {error}", str(path)) from None


def _mapped(path: Path) -> tuple[dict[str, Array], object]:
    """Small members in memory; large ones unpacked into a temporary folder and mapped."""
    arrays: dict[str, Array] = {}
    folder = None
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        size = sum(m.file_size for m in members)
        if size > _UNPACKED_LIMIT:
            raise FormatError(
                f"unpacks to {size:,} bytes; at most {_UNPACKED_LIMIT:,} are taken", str(path)
            )
        for k, member in enumerate(members):
            with archive.open(member) as file:
                key = member.filename.removesuffix(".npy")
                if member.file_size < (64 << 20):
                    arrays[key] = np.lib.format.read_array(file, allow_pickle=False)
                    continue
                folder = folder or tempfile.TemporaryDirectory(prefix="fastopt-")
                target = os.path.join(folder.name, f"{k}.npy")
                with open(target, "wb") as out:
                    shutil.copyfileobj(file, out, 1 << 20)
                arrays[key] = np.load(target, mmap_mode="r", allow_pickle=False)
    if not arrays:
        raise FormatError("holds no array", str(path))
    return arrays, folder


def _parquet(path: Path, inputs: Sequence[str]) -> dict[str, Array]:
    pandas = package("pandas", f"{path}: a .parquet file", "pandas pyarrow")
    package("pyarrow", f"{path}: a .parquet file")
    try:
        frame = pandas.read_parquet(path)
    except Exception as error:
        raise FormatError(f"cannot be read as .parquet: {error}", str(path)) from None
    columns = {
        str(c): np.stack(frame[c].to_numpy()) if frame[c].dtype == object and len(frame) and not
        isinstance(frame[c].iloc[0], str) else frame[c].to_numpy()
        for c in frame.columns
    }  # fmt: skip
    if any(name in columns for name in inputs) or len(inputs) != 1:
        return columns
    features = [c for c in columns if c != "y"]  # a table of features is the only input
    found = {inputs[0]: np.stack([columns[c] for c in features], axis=1)}
    return found | ({"y": columns["y"]} if "y" in columns else {})


def _renamed(arrays: dict[str, Array], inputs: Sequence[str]) -> dict[str, Array]:
    """``X`` stands for the only input of a model, whatever the model calls it."""
    if len(inputs) == 1 and inputs[0] not in arrays and "X" in arrays:
        arrays[inputs[0]] = arrays.pop("X")
    return arrays


def _only(inputs: Sequence[str], name: str) -> str:
    if len(inputs) != 1:
        raise OptionError(
            f"{name}: the model has {len(inputs)} inputs ({', '.join(inputs)}); "
            "pass arrays by those names"
        )
    return inputs[0]


def _column(x: Any, name: str) -> Array:
    """One array of the data: numbers through the gate, labels also as text."""
    a = as_ndarray(x, name)
    if a.dtype.kind in "US":
        return a
    if a.dtype == object:
        if all(isinstance(v, str) for v in a.ravel()):
            return a.astype(str)
        raise DTypeError(f"{name}: expected numbers or text, got an array of objects")
    return as_array(a, name, dtypes=_NUMBERS, contiguous=False)


_NUMBERS = tuple(
    np.dtype(c).name
    for c in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
)


def load_object(text: str, name: str) -> Any:
    """What ``module:function`` names; modules of the current folder are found too."""
    module, _, attribute = text.partition(":")
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(f"{name}: cannot load {text!r}: {error}") from None
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise OptionError(f"{name}: {text!r} is not a function")
    return found


# --- rows ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Rows of a source, as one model takes them.

    Attributes
    ----------
    source : Source
    inputs : tuple of Input
        The model's inputs.
    index : (n,) int64
        Which rows.
    kinds : mapping
        For each array ``"rows"`` (axis 0 is the batch), ``"samples"`` (axis 0 counts feeds that
        are passed whole), ``"whole"`` (the same for every row).
    block : int
        Rows of an array that make one row here: the length of a batch that the graph fixes.
    labels : str or None
        The array that holds labels.
    single : bool
        Rows are fed one by one.
    """

    source: Source
    inputs: tuple[Input, ...]
    index: Array
    kinds: Mapping[str, str]
    block: int = 1
    labels: str | None = None
    single: bool = False

    def __len__(self) -> int:
        return len(self.index)

    def select(self, index: Array) -> Rows:
        """The rows ``index`` of these."""
        return replace(self, index=self.index[index])

    def column(self, name: str) -> Array:
        """One array's rows, in memory."""
        return self._read(name, self.index)

    @property
    def y(self) -> Array | None:
        """The labels."""
        return None if self.labels is None else self.column(self.labels)

    def feeds(self, batch: int = 32) -> Iterator[Feed]:
        """The model's inputs, up to ``batch`` rows at a time."""
        size = 1 if self.single else batch
        for start in range(0, len(self.index), size):
            part = self.index[start : start + size]
            yield {i.name: _as(self._read(i.name, part), i) for i in self.inputs}

    def n_feeds(self, batch: int) -> int:
        """How many feeds of ``batch`` rows there are."""
        return math.ceil(len(self) / (1 if self.single else batch))

    def run(
        self,
        model: Model,
        batch: int,
        taps: Sequence[str] = (),
        weights: Mapping[str, Array] | None = None,
    ) -> Iterator[tuple[Feed, Feed]]:
        """Outputs and tapped activations of a model, feed by feed."""
        for feed in self.feeds(batch):
            yield from model.run([feed], taps=taps, weights=weights)

    def _read(self, name: str, index: Array) -> Array:
        kind = self.kinds[name]
        if kind == "whole":
            return self.source.take(name, index[:0])
        if kind == "samples" and isinstance(self.source, _Arrays) and len(index) == 1:
            sample: Array = self.source.take(name, index)[0]
            return sample
        if self.block > 1 and kind == "rows":
            index = (index[:, None] * self.block + np.arange(self.block)).ravel()
        return self.source.take(name, index)


class Columns(Mapping[str, Any]):
    """What a metric gets as ``data``: the arrays of the rows it judges, read when asked for."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __getitem__(self, name: str) -> Array:
        if name not in self._rows.kinds:
            raise KeyError(name)
        return self._rows.column(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows.kinds)

    def __len__(self) -> int:
        return len(self._rows.kinds)


def open_rows(
    data: Any, inputs: Sequence[Input], name: str = "data", labels: str | None = None
) -> Rows:
    """Data checked against a model's inputs: names, ranks, dtypes, row counts.

    The rank decides how an array is read. Rank of the input: axis 0 is the batch. One rank more:
    axis 0 counts samples that are fed whole. A scalar is passed as it is. A folder holds one feed
    per file.
    """
    names = [i.name for i in inputs]
    source = open_source(data, name, names)
    missing = [n for n in names if n not in source.names]
    if missing:
        raise ArrayError(
            f"{name}: no array for the input {missing[0]!r}; "
            f"found {', '.join(source.names)}; the model takes {', '.join(names)}"
        )
    if labels is not None and labels not in source.names:
        raise OptionError(f"labels: no array named {labels!r}; found {', '.join(source.names)}")
    if labels is None and "y" in source.names and "y" not in names:
        labels = "y"
    if source.n is not None:
        rows = Rows(
            source, tuple(inputs), np.arange(source.n), dict.fromkeys(source.names, "rows")
        )
        return replace(rows, labels=labels, single=True)
    kinds, counts, block = _kinds(source, inputs, name)
    if not counts:
        raise ArrayError(f"{name}: every array is a scalar; expected rows")
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{k} has {n} rows" for k, n in counts.items())
        raise ArrayError(f"{name}: the arrays differ in length: {lengths}")
    n = next(iter(counts.values()))
    if n == 0:
        raise ArrayError(f"{name}: expected at least one row, got none")
    for extra in source.names:
        if extra not in kinds:
            shape = source.shape(extra)
            per_row = len(shape) > 0 and shape[0] in (n, n * block)
            kinds[extra] = "rows" if per_row and shape[0] == n * block else "whole"
    if labels is not None and (kinds[labels] != "rows"):
        have = source.shape(labels)
        raise ArrayError(f"{name}: {n} rows, but the labels {labels!r} have shape {have}")
    single = block > 1 or any(_fixed(i) for i in inputs) or "samples" in kinds.values()
    return Rows(source, tuple(inputs), np.arange(n), kinds, block, labels, single)


def _kinds(
    source: Source, inputs: Sequence[Input], name: str
) -> tuple[dict[str, str], dict[str, int], int]:
    kinds: dict[str, str] = {}
    counts: dict[str, int] = {}
    blocks = {i.shape[0] for i in inputs if i.shape and _fixed(i)} - {None, 1}
    block = max((b for b in blocks if b is not None), default=1)
    for i in inputs:
        shape = source.shape(i.name)
        rank = len(shape) if i.shape is None else len(i.shape)
        if len(shape) == 0:
            kinds[i.name] = "whole"
        elif len(shape) == rank + 1:
            kinds[i.name], counts[i.name] = "samples", shape[0]
            _check(i, shape[1:], i.shape or (), name)
        elif len(shape) == rank:
            wanted = i.shape or (None,) * rank
            _check(i, shape[1:], wanted[1:], name)
            kinds[i.name], counts[i.name] = "rows", shape[0] // block
        else:
            raise ArrayError(
                f"{name}: {i.name} has shape {shape}; the model takes {_text(i.shape)} "
                "or, for samples fed whole, one axis more"
            )
    return kinds, counts, 1 if "samples" in kinds.values() else block


def _fixed(i: Input) -> bool:
    return bool(i.shape) and i.shape[0] is not None


def _check(i: Input, found: Sequence[int], wanted: Sequence[int | None], name: str) -> None:
    if any(w is not None and w != f for f, w in zip(found, wanted, strict=True)):
        raise ArrayError(
            f"{name}: rows of {i.name} have shape {tuple(found)}; the model takes {_text(wanted)}"
        )


def _text(shape: Sequence[int | None] | None) -> str:
    if shape is None:
        return "any shape"
    return "(" + ", ".join("any" if s is None else str(s) for s in shape) + ")"


def _as(a: Array, i: Input) -> Array:
    """Rows in the input's dtype, where no value changes more than by rounding."""
    wanted = np.dtype(i.dtype)
    if a.dtype == wanted:
        return np.asarray(a, order="C")
    cast = a.astype(wanted)
    if wanted.kind in "iu" and not (a.dtype.kind in "iub" and (cast == a).all()):
        raise DTypeError(f"data: {i.name} holds {a.dtype}, the model takes {wanted}")
    return cast
