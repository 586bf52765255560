"""A recipe: which pass does what where. Plain data, searched over, applied in a fixed order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastopt._arrays import Array
from fastopt._options import choice
from fastopt.compression.passes import PASSES
from fastopt.compression.passes.calibration import Calibration
from fastopt.errors import OptionError
from fastopt.models import Model
from fastopt.search import Space

__all__ = ["Applied", "Kitchen", "Recipe"]


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
        for key in choices:
            choice(key.partition(".")[0], f"recipe key {key!r}", PASSES)
        return cls(dict(choices))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dict(self.choices)

    def steps(self) -> list[tuple[str, str, Any]]:
        """(pass, place, value) in the order of application: the passes' own, then as listed."""
        order = {name: k for k, name in enumerate(PASSES)}
        split = [(*key.partition(".")[::2], value) for key, value in self.choices.items()]
        return sorted(split, key=lambda step: order[step[0]])

    def without(self, key: str) -> Recipe:
        """The same recipe with one choice left out."""
        return Recipe({k: v for k, v in self.choices.items() if k != key})


@dataclass(frozen=True)
class Applied:
    """What a recipe made of a model: the model, and what was done where."""

    model: Model
    notes: tuple[tuple[str, str, str], ...]  # pass, place, what


class Kitchen:
    """Applies recipes to copies of one model, remembering the results of shared beginnings.

    Two candidates of a search often differ in a late choice only; the model after their common
    first steps is then taken from memory. Each step sees the Gram of the model as it stands at
    that step, so every refit makes up for what the earlier ones changed.

    Parameters
    ----------
    model : Model
        Never changed.
    calibration : array-like
        Inputs that the Grams are collected on.
    passes : sequence of str
        Which passes may act.
    remembered : int
        How many intermediate models are kept.
    """

    def __init__(
        self, model: Model, calibration: Array, passes: Sequence[str], remembered: int = 64
    ) -> None:
        self._model = model
        self._calibration = Calibration(model, calibration)
        self._passes = [choice(name, "passes", PASSES) for name in passes]
        if not self._passes:
            raise OptionError(f"passes: expected some of {', '.join(PASSES)}, got none")
        self._remembered = remembered
        self._cache: OrderedDict[tuple[Any, ...], Applied] = OrderedDict()

    def space(self) -> Space:
        """One variable for each pass and place."""
        return Space(
            **{
                f"{name}.{place}": variable
                for name, module in PASSES.items()
                if name in self._passes
                for place, variable in module.variables(self._model).items()
            }
        )

    def start(self, share: float) -> dict[str, Any]:
        """A point of ``space()`` that keeps about ``share`` of every layer."""
        return {key: PASSES[key.partition(".")[0]].start(share) for key in self.space().names}

    def final(self, recipe: Recipe) -> Recipe:
        """The same recipe, each pass as thorough as it can be."""
        found = {}
        for key, value in recipe.choices.items():
            thorough = getattr(PASSES[key.partition(".")[0]], "final", None)
            found[key] = thorough(value) if thorough else value
        return Recipe(found)

    def cook(self, recipe: Recipe) -> Applied:
        """The model after the recipe. Do not change it: it may be remembered."""
        state = Applied(self._model, ())
        key: tuple[Any, ...] = ()
        for name, place, value in recipe.steps():
            key = (*key, (name, place, value))
            found = self._cache.get(key)
            if found is None:
                found = self._step(state, name, place, value)
                self._cache[key] = found
                if len(self._cache) > self._remembered:
                    self._cache.popitem(last=False)
            else:
                self._cache.move_to_end(key)
            state = found
        return state

    def _step(self, state: Applied, name: str, place: str, value: Any) -> Applied:
        model = state.model.copy()
        note = PASSES[name].apply(model, place, value, self._calibration)
        if note is None:
            return state
        return Applied(model, (*state.notes, (name, place, note)))
