"""What a pass may ask of the data: the original's outputs, the Gram of a layer's input."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from fastopt._arrays import Array
from fastopt.calibration import Gram
from fastopt.compression.data import Rows
from fastopt.errors import OptionError
from fastopt.models import Layer, Model
from fastopt.quantization import Factor, factor_of

__all__ = ["Calibration"]

# A Gram of n features needs some multiple of n rows, and its cost grows with rows * n^2.
_ROWS_PER_FEATURE, _FEWEST, _MOST = 2, 512, 4096
_WIDEST = 4608
_LASTING = 12  # steps
_LONG_MACS = 1e10  # multiply-adds


class Calibration:
    """Calibration rows as one state of a model sees them; the Grams are kept.

    Parameters
    ----------
    original : Model
        The model before any pass.
    rows : Rows or None
        Rows that stand for the data; without them no Gram is known.
    batch : int
        Rows per feed.
    model : Model, optional
        The state; the original by default. It must not change afterwards.
    """

    def __init__(
        self, original: Model, rows: Rows | None, batch: int, model: Model | None = None
    ) -> None:
        self.original = original
        self.model = original if model is None else model
        self.memory: dict[object, object] = {}  # what passes want to find again for this state
        self._rows = rows
        self._batch = batch
        self._grams: dict[str, Gram | None] = {}
        self._ranges: dict[str, tuple[float, float]] | None = None
        self._older: dict[str, Gram] = {}
        self._age = 0  # steps since these were collected

    def of(self, model: Model) -> Calibration:
        """The same rows for another state of the model, one step on.

        Where a run over the rows is long, Grams of layers with as many inputs as before serve for
        ``_LASTING`` steps: what one step changes in the input of others is little.
        """
        found = self.fresh(model)
        if self._age < _LASTING and self.long:
            known = {k: g for k, g in self._grams.items() if g is not None}
            found._older, found._age = self._older | known, self._age + 1
        return found

    def fresh(self, model: Model | None = None) -> Calibration:
        """The same rows with nothing collected, of another state or of this one."""
        state = self.model if model is None else model
        return Calibration(self.original, self._rows, self._batch, state)

    def current(self) -> Calibration:
        """This one, or a fresh one where its Grams are of an earlier state."""
        if self._age == 0:
            return self
        if "current" not in self.memory:
            self.memory["current"] = self.fresh()
        return self.memory["current"]  # type: ignore[return-value]

    @property
    def n_rows(self) -> int:
        """How many rows there are."""
        return 0 if self._rows is None else len(self._rows)

    @property
    def long(self) -> bool:
        """Whether a run over the rows takes about a second or more."""
        return self.n_rows * self.original.macs > _LONG_MACS

    @property
    def outputs(self) -> Array:
        """The original model's first output, one row per input row."""
        runs = () if self._rows is None else self._rows.run(self.original, self._batch)
        return np.concatenate([next(iter(out.values())) for out, _ in runs])

    @property
    def labels(self) -> Array | None:
        """The labels of the rows, where they have some."""
        return None if self._rows is None else self._rows.y

    @property
    def inputs(self) -> Array:
        """All rows of the first input."""
        feeds = () if self._rows is None else self._rows.feeds(self._batch)
        return np.concatenate([next(iter(feed.values())) for feed in feeds])

    def gram(self, layer: str) -> Gram:
        """The Gram of a layer's input."""
        found = self.grams([layer])
        if layer not in found:
            raise OptionError(f"calib: no rows reach {layer}")
        return found[layer]

    def grams(self, names: Iterable[str]) -> dict[str, Gram]:
        """The Grams of several layers' inputs, from one pass over the rows.

        Layers that cannot be observed, that are too wide or whose input is not finite are left
        out; a tensor that feeds several layers is collected once. Where a run over the rows is
        long, all layers are collected as soon as one is missing: the next steps ask for them.
        """
        wanted, layers = list(names), self.model.layers
        if any(name not in self._grams for name in wanted):
            for name, gram in self._older.items():
                if name in layers and gram.n == layers[name].weight.shape[1]:
                    self._grams.setdefault(name, gram)
        missing = [name for name in wanted if name not in self._grams]
        if missing and self.long:
            missing = [name for name in layers if name not in self._grams]
        if missing:
            self._collect({name: layers[name] for name in missing})
        found = {name: self._grams[name] for name in wanted}
        return {name: gram for name, gram in found.items() if gram is not None}

    def factor(self, layer: str) -> Factor | None:
        """The Gram of a layer's input factorised for GPTQ; None where no rows reach it."""
        gram = self.grams([layer]).get(layer)
        if gram is None:
            return None
        key = ("factor", id(gram))  # layers that read one tensor share its Gram
        if key not in self.memory:
            self.memory[key] = factor_of(shrunk(gram))
        return self.memory[key]  # type: ignore[return-value]

    def ranges(self, layer: str) -> dict[str, tuple[float, float]]:
        """Least and largest value of a layer's input and output."""
        if self._ranges is None:
            self._ranges = self._observed()
        found = self.model.layers[layer]
        return {t: self._ranges[t] for t in (found.tap, found.output) if t in self._ranges}

    def _observed(self) -> dict[str, tuple[float, float]]:
        """The ranges around every layer that can run with them, from one pass over the rows."""
        layers = [
            layer
            for layer in self.model.layers.values()
            if any(f.activations == "static" for f in layer.forms)
        ]
        taps = tuple(dict.fromkeys(t for x in layers for t in (x.tap, x.output) if t is not None))
        found: dict[str, tuple[float, float]] = {}
        runs = () if self._rows is None else self._rows.run(self.model, self._batch, taps)
        for _, tapped in runs:
            for name, a in tapped.items():
                low, high = found.get(name, (math.inf, -math.inf))
                found[name] = min(low, float(a.min())), max(high, float(a.max()))
        return found

    def _collect(self, layers: dict[str, Layer]) -> None:
        self._grams.update(dict.fromkeys(layers))
        sources: dict[tuple[object, ...], list[str]] = {}  # layers that share a Gram
        for name, layer in layers.items():
            n_in = layer.weight.shape[1]
            if layer.tap is None or layer.kind == "embedding" or layer.n_blocks > 1:
                continue
            if n_in <= _WIDEST:
                own = name if layer.kind.startswith("conv") else ""  # patches are a layer's own
                sources.setdefault((layer.tap, own, n_in), []).append(name)
        if not sources or self._rows is None:
            return
        taps = tuple(dict.fromkeys(str(key[0]) for key in sources))
        grams = {key: Gram(layers[names[0]].weight.shape[1]) for key, names in sources.items()}
        n_feeds = self._rows.n_feeds(self._batch)
        for _, tapped in self._rows.run(self.model, self._batch, taps):
            for key in list(grams):
                limit = min(_MOST, max(_FEWEST, _ROWS_PER_FEATURE * grams[key].n))
                share = math.ceil(limit / n_feeds)
                rows = self.model.rows(sources[key][0], tapped[str(key[0])], share)[0]
                if not np.isfinite(rows).all():
                    del grams[key]
                elif len(rows):
                    grams[key].update(rows)
        for key, gram in grams.items():
            if gram.count:
                self._grams.update(dict.fromkeys(sources[key], gram))


def shrunk(gram: Gram) -> Array:
    """Second moments per row, those between inputs made smaller where few rows show them.

    (1 - s) S + s diag(S), s = sum of the variances of S_ij / sum of S_ij^2 over i != j, the
    variance of S_ij being (S_ii S_jj + S_ij^2) / rows (Schaefer and Strimmer, "A shrinkage
    approach to large-scale covariance matrix estimation", 2005, equation 10, for normal inputs).
    """
    second = gram.second / gram.count
    level = second.diagonal().copy()
    squares = float((second**2).sum() - (level**2).sum())
    products = float(level.sum() ** 2 - (level**2).sum())
    share = min(1.0, (products + squares) / (gram.count * squares)) if squares > 0 else 1.0
    second *= 1.0 - share
    second[np.diag_indices(len(second))] = level
    return second
