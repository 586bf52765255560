"""What every optimiser here shares: parameters, groups, state, and the step over all of them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np

from fastopt._arrays import Array, as_array, as_target
from fastopt._kernels import update
from fastopt._options import integer, number
from fastopt._threads import resolve
from fastopt.errors import ArrayError, DTypeError, FormatError, OptionError

__all__ = ["Optimizer", "ParamGroup"]

Params: TypeAlias = "Any"
Validator: TypeAlias = "Callable[[Any], Any]"

# Elements below which one thread is faster: the division and the root of Adam take about 1 ns an
# element, a parallel region on a busy machine up to 40 us (benchmarks/bench_update.py).
SERIAL_BELOW = 1 << 15

# Keys that torch.optim writes into its groups and that say how it runs, not what it computes.
_TORCH_ONLY = frozenset({"foreach", "capturable", "differentiable", "fused", "param_names"})
_FREE_KEYS = frozenset({"name", "initial_lr"})


def non_negative(name: str) -> Validator:
    return lambda value: number(value, name, low=0.0)


def fraction(name: str) -> Validator:
    return lambda value: number(value, name, low=0.0, high=1.0, high_open=True)


def real(name: str) -> Validator:
    return lambda value: number(value, name)


def flag(name: str) -> Validator:
    def check(value: Any) -> bool:
        if not isinstance(value, (bool, np.bool_)):
            raise DTypeError(f"{name}: expected True or False, got {value!r}")
        return bool(value)

    return check


def betas(value: Any) -> tuple[float, float]:
    try:
        first, second = value
    except (TypeError, ValueError):
        raise DTypeError(f"betas: expected two numbers, got {value!r}") from None
    check = (fraction("betas[0]"), fraction("betas[1]"))
    return check[0](first), check[1](second)


class ParamGroup(dict[str, Any]):
    """The parameters and options of one group: a dict that checks what is put into it.

    ``group["lr"] = 0.1`` takes effect at the next step; a value that is not allowed is refused
    and leaves the group as it was. It pickles and copies as a plain dict.
    """

    def __init__(self, check: Callable[[str, Any], Any], values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._check = check

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, self._check(key, value))

    def update(self, *args: Any, **kwargs: Any) -> None:
        checked = {k: self._check(k, v) for k, v in dict(*args, **kwargs).items()}
        super().update(checked)

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def __ior__(self, other: Any) -> ParamGroup:  # type: ignore[override, misc]
        self.update(other)
        return self

    def __delitem__(self, key: str) -> None:
        raise OptionError(f"{key}: an option of a group can be changed but not removed")

    def pop(self, key: str, *default: Any) -> Any:
        raise OptionError(f"{key}: an option of a group can be changed but not removed")

    def popitem(self) -> tuple[str, Any]:
        raise OptionError("an option of a group can be changed but not removed")

    def clear(self) -> None:
        raise OptionError("an option of a group can be changed but not removed")

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return {k: copy.deepcopy(v, memo) for k, v in self.items()}


class Optimizer:
    """Parameters, their groups and their state; the subclasses bring the rule and its options.

    Attributes
    ----------
    param_groups : list of ParamGroup
        One dict a group: ``"params"`` (list of the arrays) and the options. Options may be
        changed between steps.
    threads : int or None
        Threads a step may use; None for the rule of the package.
    """

    # Filled by each family: option name -> its check, in torch.optim's order.
    _options: ClassVar[dict[str, Validator]] = {}
    # Options that hold for the whole optimizer, not a group.
    param_groups: list[ParamGroup]

    def __init__(
        self, params: Params, defaults: dict[str, Any], *, threads: int | None = None
    ) -> None:
        self._defaults = {k: self._options[k](v) for k, v in defaults.items()}
        self.threads = None if threads is None else integer(threads, "threads", low=1)
        self.param_groups = []
        self._params: list[Array] = []
        self._names: list[str | None] = []
        self._group_of: list[int] = []
        self._state: list[dict[str, Array]] = []
        self._steps: list[int] = []
        self._single = False
        groups = self._read_params(params)
        for group in groups:
            self._append_group(group)
        self._check_group(range(len(self.param_groups)))
        self._check_memory(self._params)
        self._build()

    # -- what a family defines ---------------------------------------------------------------

    def _rule(self, group: Mapping[str, Any]) -> str:
        """Name of the kernel's rule for these options."""
        raise NotImplementedError

    def _state_names(self, rule: str) -> tuple[str, ...]:
        """Names of the rule's state arrays, as torch.optim spells them."""
        raise NotImplementedError

    def _scalars(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """The group's options in the order that the kernel reads them."""
        raise NotImplementedError

    def _counts_steps(self) -> bool:
        """Whether torch.optim's state of this family has a step count."""
        return True

    def _check_group(self, indices: Iterable[int]) -> None:
        """Refuse combinations of options; called before anything is built."""

    # -- the step ----------------------------------------------------------------------------

    def step(self, grads: Any) -> None:
        """In place: one step of every parameter that has a gradient.

        Parameters
        ----------
        grads : array, sequence of arrays or dict of arrays
            Gradients in the structure of ``params`` (for groups: one after the other), each with
            its parameter's shape and dtype, C-contiguous. None, or a name left out of a dict,
            leaves that parameter, its state and its step count untouched.

        Raises
        ------
        ArrayError, DTypeError
            Wrong count, shape, dtype or layout, or a gradient that overlaps a parameter; nothing
            has been written then.
        ConcurrentUseError
            Another thread is inside ``step`` of this optimizer.
        """
        if self._stale:
            self._sync()
        flat = grads if type(grads) is tuple else self._flat(grads)
        threads = 1 if self._small else resolve(self.threads, self._plan.size, SERIAL_BELOW)
        try:
            self._plan.step(flat, 1.0, threads)
        except DTypeError:
            converted = self._converted(flat)
            if converted is None:
                raise
            self._plan.step(converted, 1.0, threads)

    def _flat(self, grads: Any) -> tuple[Any, ...]:
        """Gradients as a tuple in the order of the parameters."""
        if type(grads) is list:
            return tuple(grads)
        if isinstance(grads, Mapping):
            unknown = [k for k in grads if k not in self._names]
            if unknown:
                raise ArrayError(f"grads: no parameter is named {unknown[0]!r}")
            return tuple(grads.get(name) for name in self._names)
        if self._single and hasattr(grads, "shape"):
            return (grads,)
        if isinstance(grads, Iterable) and not hasattr(grads, "shape"):
            return tuple(grads)
        raise ArrayError(
            f"grads: expected a sequence or dict of {len(self._params)} arrays, "
            f"got {type(grads).__name__}"
        )

    def _converted(self, flat: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Tensors and other array-likes as ndarrays; None where nothing needed it."""
        if all(g is None or isinstance(g, np.ndarray) for g in flat):
            return None
        return tuple(
            g
            if g is None or isinstance(g, np.ndarray)
            else as_array(g, f"grads[{i}]", dtypes=("float32", "float64", "float16", "bfloat16"))
            for i, g in enumerate(flat)
        )

    # -- parameters and groups ---------------------------------------------------------------

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters with their own options; their gradients come after the others.

        Parameters
        ----------
        group : dict
            ``"params"`` (array, list or dict of arrays) and any options; the rest are the
            defaults that the optimizer was built with.
        """
        self._save_steps()
        before = (
            list(self.param_groups),
            list(self._params),
            list(self._names),
            list(self._group_of),
            list(self._state),
            list(self._steps),
            self._single,
        )
        try:
            self._append_group(group)
            self._check_group([len(self.param_groups) - 1])
            self._check_memory(self._params)
            self._single = False
            self._build()
        except Exception:
            (
                self.param_groups,
                self._params,
                self._names,
                self._group_of,
                self._state,
                self._steps,
                self._single,
            ) = before
            raise

    def _read_params(self, params: Params) -> list[Mapping[str, Any]]:
        """``params`` as a list of groups."""
        if isinstance(params, Mapping):
            return [{"params": params}]
        if hasattr(params, "shape"):
            self._single = True
            return [{"params": params}]
        if not isinstance(params, Iterable) or isinstance(params, (str, bytes)):
            raise DTypeError(
                f"params: expected an array, or a list or dict of arrays or groups, "
                f"got {type(params).__name__}"
            )
        items = list(params)
        if not items:
            raise ArrayError("params: expected at least one array, got none")
        if all(isinstance(item, Mapping) for item in items):
            return items
        return [{"params": items}]

    def _append_group(self, group: Mapping[str, Any]) -> None:
        if not isinstance(group, Mapping) or "params" not in group:
            raise DTypeError('params: a group is a dict with the key "params" and options')
        number_of_group = len(self.param_groups)
        given = group["params"]
        if isinstance(given, Mapping):
            pairs: list[tuple[str | None, Any]] = [(str(k), v) for k, v in given.items()]
        elif hasattr(given, "shape"):
            pairs = [(None, given)]
        elif isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
            pairs = [
                item
                if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
                else (None, item)
                for item in given
            ]
        else:
            raise DTypeError(
                f"params: expected an array, or a list or dict of arrays, "
                f"got {type(given).__name__}"
            )
        arrays: list[Array] = []
        for name, value in pairs:
            where = f"params[{len(self._params) + len(arrays) if name is None else repr(name)}]"
            arrays.append(as_target(value, where))
            if name is not None and name in self._names:
                raise ArrayError(f"params: the name {name!r} is used twice")
            self._names.append(name)
        options = dict(self._defaults)
        for key, value in group.items():
            if key != "params":
                options[key] = self._checked(key, value)
        self.param_groups.append(ParamGroup(self._changed, {"params": arrays, **options}))
        self._params += arrays
        self._group_of += [number_of_group] * len(arrays)
        self._state += [{} for _ in arrays]
        self._steps += [0] * len(arrays)

    def _checked(self, key: str, value: Any) -> Any:
        if key in _FREE_KEYS:
            return value
        if key not in self._options:
            raise OptionError(
                f"{key}: {type(self).__name__} has no such option; it has "
                f"{', '.join(self._options)}"
            )
        return self._options[key](value)

    def _changed(self, key: str, value: Any) -> Any:
        """Check one change of a group and remember to hand it to the kernel."""
        if key == "params":
            raise OptionError("params: use add_param_group; the arrays of a group are fixed")
        checked = self._checked(key, value)
        self._stale = True
        return checked

    @staticmethod
    def _check_memory(arrays: Sequence[Array]) -> None:
        """Refuse parameters that share memory with each other."""
        spans = sorted(
            (a.ctypes.data, a.ctypes.data + a.nbytes, i) for i, a in enumerate(arrays) if a.size
        )
        for (_, end, i), (start, _, j) in itertools.pairwise(spans):
            if start < end:
                raise ArrayError(
                    f"params[{max(i, j)}]: shares memory with params[{min(i, j)}]; "
                    "give each parameter once"
                )

    # -- the plan ----------------------------------------------------------------------------

    def _build(self) -> None:
        """Bind everything to a new Plan; state that exists is kept."""
        rules = [self._rule(group) for group in self.param_groups]
        names = [self._state_names(rules[g]) for g in self._group_of]
        self._allocate(names)
        states = [tuple(s[n] for n in ns) for s, ns in zip(self._state, names, strict=True)]
        self._plan = update.Plan(rules, self._params, states, self._group_of)
        self._plan.steps = self._steps
        self._rules = rules
        self._small = self.threads is None and self._plan.size < SERIAL_BELOW
        self._stale = True

    def _allocate(self, names: Sequence[tuple[str, ...]]) -> None:
        """State arrays that are missing, zero, in one slab.

        Each begins on its own cache line and a little further into its page than the one before:
        streams at equal offsets in their pages evict each other (benchmarks/bench_update.py).
        """
        missing = [
            (i, name)
            for i, wanted in enumerate(names)
            for name in wanted
            if name not in self._state[i]
        ]
        for i, wanted in enumerate(names):
            self._state[i] = {k: v for k, v in self._state[i].items() if k in wanted}
        if not missing:
            return
        offsets, end = [], 0
        for i, _ in missing:
            offsets.append(end)
            end += -(-self._params[i].nbytes // 64) * 64 + 17 * 64
        slab = np.zeros(end + 64, np.uint8)
        first = -slab.ctypes.data % 64
        for (i, name), at in zip(missing, offsets, strict=True):
            p = self._params[i]
            part = slab[first + at : first + at + p.nbytes]
            self._state[i][name] = part.view(p.dtype).reshape(p.shape)

    def _sync(self) -> None:
        """Hand changed options to the kernel; a change of rule rebuilds the plan."""
        self._check_group(range(len(self.param_groups)))
        if [self._rule(group) for group in self.param_groups] != self._rules:
            self._save_steps()
            self._build()
        for i, group in enumerate(self.param_groups):
            self._plan.set_options(i, self._scalars(group))
        self._stale = False

    def _save_steps(self) -> None:
        self._steps = self._plan.steps

    # -- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state and the options in torch.optim's layout, as plain data; arrays are copies.

        ``{"state": {i: {"step": t, "exp_avg": ..., ...}}, "param_groups": [{"lr": ..., "params":
        [0, 1, ...]}, ...]}`` with parameters numbered through in order; a parameter that never
        had a gradient has no entry in ``"state"``.
        """
        self._save_steps()
        state: dict[int, dict[str, Any]] = {}
        for i, arrays in enumerate(self._state):
            if self._steps[i]:
                entry: dict[str, Any] = {"step": self._steps[i]} if self._counts_steps() else {}
                entry.update({name: a.copy() for name, a in arrays.items()})
                if entry:
                    state[i] = entry
        groups, first = [], 0
        for group in self.param_groups:
            count = len(group["params"])
            plain = {k: v for k, v in group.items() if k != "params"}
            groups.append({**plain, "params": list(range(first, first + count))})
            first += count
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """In place: take over the state and options of ``state_dict`` (ours or torch.optim's).

        Raises
        ------
        FormatError
            Groups, shapes or names do not fit these parameters; nothing has changed then.
        """
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
            raise FormatError('state_dict: expected a dict with "state" and "param_groups"')
        groups = list(state_dict["param_groups"])
        sizes = [len(g["params"]) for g in groups]
        if sizes != [len(g["params"]) for g in self.param_groups]:
            raise FormatError(
                f"state_dict: expected groups of {[len(g['params']) for g in self.param_groups]} "
                f"parameters, got {sizes}"
            )
        new_groups = []
        for old, group in zip(self.param_groups, groups, strict=True):
            options = {
                k: self._checked(k, v)
                for k, v in group.items()
                if k != "params" and k not in _TORCH_ONLY
            }
            new_groups.append({**old, **options})
        ids = [i for g in groups for i in g["params"]]
        entries = [state_dict["state"].get(i, {}) for i in ids]
        unknown = set(state_dict["state"]) - set(ids)
        if unknown:
            raise FormatError(f"state_dict: state for unknown parameters {sorted(unknown)}")
        loaded = [
            self._read_entry(i, entry, new_groups[self._group_of[i]])
            for i, entry in enumerate(entries)
        ]
        for group, new in zip(self.param_groups, new_groups, strict=True):
            dict.update(group, new)
        self._steps = [t for t, _ in loaded]
        self._state = [arrays for _, arrays in loaded]
        self._build()

    def _read_entry(
        self, i: int, entry: Mapping[str, Any], group: Mapping[str, Any]
    ) -> tuple[int, dict[str, Array]]:
        """One parameter's step count and fresh copies of its state arrays."""
        p = self._params[i]
        names = self._state_names(self._rule(group))
        held = {k: v for k, v in entry.items() if k != "step" and v is not None}
        arrays: dict[str, Array] = {}
        if held:
            for name in names:
                if name not in held:
                    raise FormatError(f"state_dict: state of parameter {i} lacks {name!r}")
                try:
                    a = as_array(held[name], name, cast=p.dtype.name, shape=p.shape)
                except (ArrayError, DTypeError) as error:
                    raise FormatError(f"state_dict: state of parameter {i}: {error}") from None
                arrays[name] = np.array(a, p.dtype, order="C", copy=True)
        if self._counts_steps():
            raw = float(np.asarray(entry.get("step", 0)))
            if not raw.is_integer() or raw < 0 or (held and raw == 0):
                raise FormatError(f"state_dict: step of parameter {i}: got {raw!r}")
            step = int(raw)
        else:
            step = 1 if held else 0
        return step, arrays

    def __getstate__(self) -> dict[str, Any]:
        return {
            "params": self._params,
            "names": self._names,
            "single": self._single,
            "defaults": self._defaults,
            "threads": self.threads,
            "state_dict": self.state_dict(),
            "steps": self._steps,
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self._defaults = saved["defaults"]
        self.threads = saved["threads"]
        self.param_groups, self._params, self._names = [], [], []
        self._group_of, self._state, self._steps = [], [], []
        names, params = saved["names"], saved["params"]
        for group in saved["state_dict"]["param_groups"]:
            pairs = [(names[i], params[i]) for i in group["params"]]
            arrays = [p if n is None else (n, p) for n, p in pairs]
            self._append_group({**group, "params": arrays})
        self._single = saved["single"]
        self._build()
        self.load_state_dict(saved["state_dict"])
        self._plan.steps = saved["steps"]

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            sizes = sum(a.size for a in group["params"])
            options = ", ".join(f"{k}={v!r}" for k, v in group.items() if k != "params")
            lines.append(f"  group {i}: {len(group['params'])} arrays, {sizes} values; {options}")
        return "\n".join([*lines, ")"])
