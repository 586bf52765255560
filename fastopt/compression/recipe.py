"""A recipe: which pass does what where. Plain data, searched over, applied in a fixed order."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastopt._files import path_of, storage_errors
from fastopt._options import choice, short
from fastopt.compression.passes import PASSES
from fastopt.compression.passes.calibration import Calibration
from fastopt.errors import FormatError, OptionError
from fastopt.models import Model

__all__ = ["Applied", "Recipe", "Workbench"]

# States of the model that are kept: by number, and by the bytes that their weights may take.
_MOST_STATES, _FEWEST_STATES, _STATE_BYTES = 64, 4, 1 << 30


@dataclass(frozen=True)
class Recipe:
    """Choices by ``"<pass>.<place>"``, for example ``{"prune.dense0": 0.25}``.

    Parameters
    ----------
    choices : mapping
        What each pass does at each place; a missing one leaves the place as it is.

    Examples
    --------
    >>> Recipe.from_dict({"quantize.dense1": "int8", "prune.dense0": 0.5}).steps()
    [('prune', 'dense0', 0.5), ('quantize', 'dense1', 'int8')]
    """

    choices: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, choices: Mapping[str, Any]) -> Recipe:
        """Check the names of the passes."""
        if not isinstance(choices, Mapping) or not all(isinstance(k, str) for k in choices):
            raise OptionError(f"recipe: expected a dict by name, got {short(choices)}")
        for key in choices:
            choice(key.partition(".")[0], f"recipe key {key!r}", PASSES)
        return cls(dict(choices))

    @classmethod
    def load(cls, path: str) -> Recipe:
        """Read a recipe out of a JSON file: the choices alone, or a result that holds them.

        Raises
        ------
        FormatError
            The file holds no recipe.
        StorageError
            It cannot be read; MissingFileError where there is none.
        """
        path = path_of(path)
        try:
            with storage_errors(path), open(path, encoding="utf-8") as file:
                found = json.load(file)
            return cls.from_dict(found.get("recipe", found))
        except (ValueError, AttributeError, RecursionError) as error:
            raise FormatError(f"expected a recipe: {error}", path) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dict(self.choices)

    @property
    def key(self) -> str:
        """The same text for equal recipes."""
        return json.dumps(self.to_dict(), sort_keys=True, default=str)

    def steps(self) -> list[tuple[str, str, Any]]:
        """(pass, place, value) in the order of application: the passes' own, then as listed."""
        order = {name: k for k, name in enumerate(PASSES)}
        split = [(*key.partition(".")[::2], value) for key, value in self.choices.items()]
        return sorted(split, key=lambda step: order[step[0]])

    def without(self, key: str) -> Recipe:
        """The same recipe with one choice left out."""
        return Recipe({k: v for k, v in self.choices.items() if k != key})

    def replaced(self, changes: Mapping[str, Any]) -> Recipe:
        """The same recipe with some choices changed."""
        return Recipe({**self.choices, **changes})

    @property
    def final(self) -> Recipe:
        """The same recipe, each pass as thorough as it can be."""
        found = {}
        for key, value in self.choices.items():
            thorough = getattr(PASSES[key.partition(".")[0]], "final", None)
            found[key] = thorough(value) if thorough else value
        return Recipe(found)


@dataclass(frozen=True)
class Applied:
    """What a recipe made of a model: the model, and what was done where."""

    model: Model
    notes: tuple[tuple[str, str, str], ...]  # pass, place, what
    calibration: Calibration = field(repr=False)  # the rows as that model sees them


class Workbench:
    """Applies recipes to copies of one model, keeping the states that recipes share.

    Two candidates of a search often differ in a late choice only; the model after their common
    first steps is then found again. Each pass but the last sees the Grams of the model as it
    stands, so every refit makes up for what the earlier steps changed.

    Parameters
    ----------
    calibration : Calibration
        Of the original model, which is never changed.
    """

    def __init__(self, calibration: Calibration) -> None:
        self._start = Applied(calibration.model, (), calibration)
        fit = _STATE_BYTES // max(1, 4 * calibration.model.n_params)
        self._remembered = max(_FEWEST_STATES, min(_MOST_STATES, fit))
        self._states: OrderedDict[tuple[Any, ...], Applied] = OrderedDict()

    def apply(self, recipe: Recipe) -> Applied:
        """The model after the recipe. Do not change it: it may be kept."""
        steps = recipe.steps()
        state = self._start
        key: tuple[Any, ...] = ()
        for step in (s for s in steps if s[0] != "quantize"):
            key = (*key, step)
            found = self._states.get(key)
            if found is None:
                found = self._states[key] = _step(state, *step)
                if len(self._states) > self._remembered:
                    self._states.popitem(last=False)
            else:
                self._states.move_to_end(key)
            state = found
        return _stored(state, [s for s in steps if s[0] == "quantize"])


def _step(state: Applied, name: str, place: str, value: Any) -> Applied:
    model = state.model.copy()
    note = PASSES[name].apply(model, place, value, state.calibration)
    if note is None:
        return state
    return Applied(model, (*state.notes, (name, place, note)), state.calibration.of(model))


def _stored(state: Applied, steps: Sequence[tuple[str, str, Any]]) -> Applied:
    """All storage choices in one copy: they read one state and do not see each other."""
    if not steps:
        return state
    model = state.model.copy()
    calibration = state.calibration.current()
    calibration.grams(state.model.layers)  # one pass over the rows for all of them
    notes = []
    for name, place, value in steps:
        note = PASSES[name].apply(model, place, value, calibration)
        if note is not None:
            notes.append((name, place, note))
    return Applied(model, (*state.notes, *notes), state.calibration.of(model))
