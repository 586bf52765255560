"""What every optimiser here shares: parameters, groups, state, and the step over all of them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from fastopt._arrays import Array, as_target, check_disjoint, name_of
from fastopt._kernels import update
from fastopt._options import choice, integer, number
from fastopt._random import Seed, key_of
from fastopt._threads import resolve
from fastopt.errors import ArrayError, DivergedError, DTypeError, FormatError, OptionError
from fastopt.optim import state as states
from fastopt.optim.groups import (
    ParamGroup,
    Params,
    Validator,
    as_arrays,
    as_groups,
    flag,
    flatten,
    named_targets,
    positive,
    read_copies,
)

__all__ = ["Optimizer"]

# Elements below which one thread is faster: the division and the root of Adam take about 1 ns per
# element, a parallel region on a busy machine up to 40 us (benchmarks/bench_update.py).
SERIAL_BELOW = 1 << 15

# Keys that torch.optim writes into its groups and that say how it runs, not what it computes.
_TORCH_ONLY = frozenset({"foreach", "capturable", "differentiable", "fused", "param_names"})
_FREE_KEYS = frozenset({"name", "initial_lr"})
_KEPT = (
    *("_params", "_names", "_single", "_defaults", "_state_dtype", "_max_norm", "_on_nonfinite"),
    *("_zero_grads", "_ema_decay", "_key", "_copies", "_counts"),
    *("schedule", "threads"),
)
_FIRST = (0, 1.0)  # steps taken, NAdam's product of momenta


class Optimizer:
    """Parameters, their groups and their state; subclasses add the rule and its options.

    Parameters
    ----------
    params : array, list of arrays, dict of arrays, or list of groups
        float32 or float64, C-contiguous, any shape, overwritten by ``step``. A group is a dict
        with the key ``"params"`` and any options of the family.
    state_dtype : "float32", "bfloat16" or "int8"
        How the moments of float32 parameters are stored: in full; in 2 bytes (second moments
        stochastically rounded); in 1 byte, companded in blocks of 256 that share a scale,
        stochastically rounded. float64 parameters keep float64 state.
    max_grad_norm : float, optional
        Scale the gradients so that their common norm is at most this, as
        torch.nn.utils.clip_grad_norm_; one more pass that reads them.
    on_nonfinite : "ignore", "skip" or "raise"
        What a NaN or infinite gradient does, or one so large that a weight or its state would
        overflow: the arithmetic goes on; the whole step is left out (``skipped``);
        DivergedError. The last two cost the same pass.
    zero_grads : bool
        Set the gradients to zero in the same pass, once used.
    ema_decay : float, optional
        Keep a moving average of the weights, ema <- decay ema + (1 - decay) p, in ``ema``.
    copy_out : arrays like params, optional
        float16 or bfloat16 arrays (or None for some) that get the new float32 weights, rounded
        to nearest, at every step and now.
    schedule : callable, optional
        ``schedule(t)`` is the factor on every group's lr at step t = 0, 1, ...
    seed : int, SeedSequence, Generator or None
        Of the stochastic rounding; None is 0 here.
    threads : int, optional
        Threads a step may use; None for the rule of the package. The bits do not depend on it.

    Attributes
    ----------
    param_groups : list of ParamGroup
        One dict per group: ``"params"`` (list of the arrays) and the options, which may be changed
        between steps.
    ema : list of ndarray or None
        Averages of the parameters, in their order. Another array of the same shape and dtype may
        be put into the list; it is used from the next step on.
    grad_norm : float or None
        Norm of all gradients at the last step, where it was computed.
    skipped : bool
        Whether the last step was left out.
    n_steps, n_skipped : int
        Steps taken and left out.

    Raises
    ------
    DTypeError
        An option that the optimizer does not have, or a schedule that is no function.
    OptionError
        An option outside its range; ``state_dtype`` where the state is always float32.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import optim
    >>> w = np.array([1.0, -2.0])
    >>> opt = optim.SGD(w, lr=0.5)
    >>> isinstance(opt, optim.Optimizer)
    True
    >>> opt.step(np.array([1.0, 1.0]))
    >>> w.tolist()
    [0.5, -2.5]
    """

    _options: ClassVar[dict[str, Validator]] = {}  # name -> check, in torch.optim's order
    _narrow_state: ClassVar[bool] = True  # whether state_dtype may be narrow

    def __init__(
        self,
        params: Params,
        given: Mapping[str, Any],
        *,
        state_dtype: str = "float32",
        max_grad_norm: float | None = None,
        on_nonfinite: str = "ignore",
        zero_grads: bool = False,
        ema_decay: float | None = None,
        copy_out: Any = None,
        schedule: Callable[[int], float] | None = None,
        seed: Seed = 0,
        threads: int | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise DTypeError(f"{type(self).__name__} has no option {next(iter(unknown))!r}")
        # a family hands over the locals of its constructor: its options are among them
        self._defaults = {name: check(given[name]) for name, check in self._options.items()}
        self._state_dtype = choice(state_dtype, "state_dtype", states.STATE_DTYPES)
        if self._state_dtype != "float32" and not self._narrow_state:
            raise OptionError(f"state_dtype: {type(self).__name__} keeps its state in float32")
        self._max_norm = 0.0 if max_grad_norm is None else positive("max_grad_norm")(max_grad_norm)
        self._on_nonfinite = choice(on_nonfinite, "on_nonfinite", ("ignore", "skip", "raise"))
        self._zero_grads = flag("zero_grads")(zero_grads)
        self._ema_decay = (
            None if ema_decay is None else number(ema_decay, "ema_decay", low=0.0, high=1.0)
        )
        if schedule is not None and not callable(schedule):
            raise DTypeError(f"schedule: expected a function, got {type(schedule).__name__}")
        self.schedule = schedule
        self._key = key_of(0 if seed is None else seed)
        self.threads = None if threads is None else integer(threads, "threads", low=1)
        self.ema: list[Array] | None = None
        self._copies: list[Array | None] | None = None
        self._start(hasattr(params, "shape"))
        for group in as_groups(params):
            self._append_group(group)
        self._check_groups(self.param_groups)
        self._check_memory()
        if copy_out is not None:
            self._copies = read_copies(copy_out, self._params, self._names, self._single)
        if self._ema_decay is not None:
            self.ema = [p.copy() for p in self._params]
        self._build()
        for p, c in zip(self._params, self._copies or (), strict=False):
            if c is not None:
                c[...] = p

    def _start(self, single: bool) -> None:
        """The fields of an optimizer without parameters."""
        self.param_groups: list[ParamGroup] = []
        self._params: list[Array] = []
        self._names: list[str | None] = []
        self._group_of: list[int] = []
        self._state: list[states.ParamState] = []
        self._counts: list[tuple[int, float]] = []
        self._averages: tuple[Array, ...] = ()  # what the plan holds of the public list ``ema``
        self._single = single
        self._factor = 1.0
        self._tally = update.Tally()

    # -- what a family defines ---------------------------------------------------------------

    def _rule(self, group: Mapping[str, Any]) -> str:
        """Name of the kernel's rule for these options."""
        raise NotImplementedError

    def _kept(self, rule: str, p: Array) -> states.Kept:
        """The rule's state arrays for ``p``."""
        return [(name, signed, p.shape) for name, signed in update.RULES[rule][0]]

    def _named(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The group's options under the names of the kernel's rules."""
        beta1, beta2 = group.get("betas", (0.0, 0.0))
        return {**group, "beta1": beta1, "beta2": beta2}

    def _first_value(self, group: Mapping[str, Any]) -> float:
        """First values of the state arrays."""
        return 0.0

    def _decoupled(self, group: Mapping[str, Any]) -> bool:
        """Whether weight_decay shrinks the weights instead of adding to the gradient."""
        return bool(group.get("decoupled_weight_decay", False))

    def _counts_steps(self) -> bool:
        """Whether torch.optim's state of this family has a step count."""
        return True

    def _tells_step(self) -> bool:
        """Whether the state dict holds the seed; narrow state then keeps its noise."""
        return self._counts_steps() or self._state_dtype != "float32"

    def _check_groups(self, groups: Iterable[Mapping[str, Any]]) -> None:
        """Refuse combinations of options; called before anything is built."""

    # -- the step ----------------------------------------------------------------------------

    def step(self, grads: Any, *, loss_scale: float | None = None) -> None:
        """In place: one step of every parameter that has a gradient.

        Parameters
        ----------
        grads : array, sequence of arrays or dict of arrays
            Gradients in the structure of ``params`` (for groups: one after the other), each with
            its parameter's shape, C-contiguous, in its dtype (float32 parameters also take
            float16 and bfloat16). None, or a name left out of a dict, leaves that parameter, its
            state and its step count untouched.
        loss_scale : float, optional
            Divide the gradients by it; ``on_nonfinite="skip"`` then drops overflowed steps.

        Raises
        ------
        ArrayError, DTypeError
            Wrong count, shape, dtype or layout, or a gradient that overlaps a parameter; nothing
            has been written then.
        DivergedError
            A gradient is not finite and ``on_nonfinite="raise"``; nothing has been written.
        ConcurrentUseError
            Another thread is inside ``step`` of this optimizer.
        """
        if self.schedule is not None:
            self._reschedule(self.schedule)
        if self._ema_decay is not None:
            self._bind_averages()
        if self._stale:
            with self._alone():
                self._sync()
        kind = type(grads)
        flat = tuple(grads) if kind is list else grads
        if kind is not list and kind is not tuple:
            flat = flatten(grads, self._names, self._single)
        threads = 1 if self._small else resolve(self.threads, self._size, SERIAL_BELOW)
        scale = 1.0 if loss_scale is None else 1.0 / positive("loss_scale")(loss_scale)
        try:
            norm = self._take(flat, scale, threads)
        except DTypeError:
            converted = as_arrays(flat, self._zero_grads)
            if converted is None:
                raise
            norm = self._take(converted, scale, threads)
        if self._guard and not math.isfinite(norm):
            tally = self._tally
            tally.grad_norm, tally.skipped = norm, True
            if self._on_nonfinite == "raise":
                raise DivergedError(
                    "grads: hold NaN or infinity, or values that make the state overflow; "
                    "nothing was changed. Try a smaller lr or max_grad_norm, or "
                    'on_nonfinite="skip"'
                )
            tally.n_skipped += 1

    def _take(self, flat: tuple[Any, ...], scale: float, threads: int) -> float:
        """One step; the norm of the gradients where it was asked for, else -1."""
        return self._plan.step(flat, scale, self._max_norm, self._guard, threads)

    def _reschedule(self, schedule: Callable[[int], float]) -> None:
        factor = number(schedule(self.n_steps), "schedule's result", low=0.0)
        if factor != self._factor:
            self._factor, self._stale = factor, True

    # -- parameters and groups ---------------------------------------------------------------

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters with their own options; their gradients come after the others.

        Parameters
        ----------
        group : dict
            ``"params"`` (array, list or dict of arrays) and any options; the rest are the
            defaults that the optimizer was built with.
        """
        with self._alone():
            self._extend(group)

    def _extend(self, group: Mapping[str, Any]) -> None:
        """All of ``add_param_group`` or nothing."""
        self._save_counts()
        fields = ("param_groups", "_params", "_names", "_group_of", "_state", "_counts")
        before = {name: list(getattr(self, name)) for name in fields}
        try:
            self._append_group(group)
            self._check_groups(self.param_groups[-1:])
            self._check_memory()
            new = self._params[len(before["_params"]) :]
            if self.ema is not None:
                self.ema = self.ema + [p.copy() for p in new]
            if self._copies is not None:
                self._copies = [*self._copies, *(None for _ in new)]
            self._build()
            self._single = False
        except Exception:
            for name, value in before.items():
                setattr(self, name, value)
            raise

    def _append_group(self, group: Mapping[str, Any]) -> None:
        if not isinstance(group, Mapping) or "params" not in group:
            raise DTypeError('params: a group is a dict with the key "params" and options')
        number_of_group = len(self.param_groups)
        pairs = named_targets(group["params"], len(self._params))
        for name, _ in pairs:
            if name is not None and name in self._names:
                raise ArrayError(f"params: the name {name!r} is used twice")
            self._names.append(name)
        options = dict(self._defaults)
        for key, value in group.items():
            if key != "params":
                options[key] = self._checked(key, value)
        arrays = [a for _, a in pairs]
        self.param_groups.append(ParamGroup(self._changed, {"params": arrays, **options}))
        self._params += arrays
        self._group_of += [number_of_group] * len(arrays)
        self._state += [{} for _ in arrays]
        self._counts += [_FIRST for _ in arrays]

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

    def _check_memory(self, averages: Iterable[Array] = ()) -> None:
        named = [(f"params[{i}]", p) for i, p in enumerate(self._params)]
        copies = [(f"copy_out[{i}]", c) for i, c in enumerate(self._copies or ()) if c is not None]
        emas = [(f"ema[{i}]", e) for i, e in enumerate(averages or self.ema or ())]
        check_disjoint([*named, *copies, *emas], ())

    # -- counters, which the step itself writes ----------------------------------------------

    @property
    def n_steps(self) -> int:
        """Steps taken."""
        return self._tally.n_steps

    @property
    def n_skipped(self) -> int:
        """Steps left out."""
        return self._tally.n_skipped

    @property
    def grad_norm(self) -> float | None:
        """Norm of all gradients at the last step, where it was computed."""
        return self._tally.grad_norm

    @property
    def skipped(self) -> bool:
        """Whether the last step was left out."""
        return bool(self._tally.skipped)

    # -- the plan ----------------------------------------------------------------------------

    def _build(self) -> None:
        """Bind everything to a new Plan; state that exists is kept."""
        rules = [self._rule(group) for group in self.param_groups]
        kept = [self._kept(rules[g], p) for g, p in zip(self._group_of, self._params, strict=True)]
        firsts = [self._first_value(self.param_groups[g]) for g in self._group_of]
        self._state = states.allocate(self._params, kept, self._state, self._state_dtype, firsts)
        own = [tuple(s[n] for n, *_ in ks) for s, ks in zip(self._state, kept, strict=True)]
        scales = [
            tuple(s[n + states.SCALE] for n, *_ in ks if n + states.SCALE in s)
            for s, ks in zip(self._state, kept, strict=True)
        ]
        plan = update.Plan(
            rules, self._params, own, self._group_of, scales, self._key, self._tally
        )
        share = 0.0 if self._ema_decay is None else 1.0 - self._ema_decay
        plan.set_fused(self.ema, share, self._copies, self._zero_grads)
        self._averages = tuple(self.ema or ())
        plan.counts = self._counts
        self._plan, self._rules, self._size = plan, rules, plan.size
        self._guard = self._on_nonfinite != "ignore"
        self._small = self.threads is None and self._size < SERIAL_BELOW
        self._stale = True

    def _sync(self) -> None:
        """Hand changed options to the kernel; a change of rule rebuilds the plan."""
        self._check_groups(self.param_groups)
        if [self._rule(group) for group in self.param_groups] != self._rules:
            self._save_counts()
            self._build()
        for i, group in enumerate(self.param_groups):
            decay, decoupled = group.get("weight_decay", 0.0), self._decoupled(group)
            common = (
                group["lr"] * self._factor,
                -1.0 if group.get("maximize", False) else 1.0,
                0.0 if decoupled else decay,
                decay if decoupled else 0.0,
            )
            named = self._named(group)
            own = (named[name] for name in update.RULES[self._rules[i]][1])
            self._plan.set_options(i, (*common, *own))
        self._stale = False

    def _bind_averages(self) -> None:
        """Check arrays that were put into ``ema`` since the last step; hand them to the plan."""
        given, bound = self.ema, self._averages
        if not isinstance(given, (list, tuple)) or len(given) != len(self._params):
            raise ArrayError(f"ema: expected a list of {len(self._params)} arrays like params")
        if len(bound) == len(given) and all(map(operator.is_, given, bound)):
            return
        arrays = [
            as_target(e, f"ema[{i}]", dtypes=(name_of(p.dtype),), shape=p.shape)
            for i, (e, p) in enumerate(zip(given, self._params, strict=True))
        ]
        self._check_memory(arrays)
        plan = self._plan
        plan.hold()
        try:
            self.ema, self._averages = arrays, tuple(arrays)
            plan.set_fused(arrays, 1.0 - (self._ema_decay or 0.0), self._copies, self._zero_grads)
        finally:
            plan.release()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Mark as busy; ConcurrentUseError if another thread steps."""
        if self._ema_decay is not None:
            self._bind_averages()
        plan = self._plan
        plan.hold()
        try:
            yield
        finally:
            plan.release()

    def _save_counts(self) -> None:
        self._counts = self._plan.counts

    # -- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state and the options in torch.optim's layout, as plain data; arrays are copies.

        ``{"state": {i: {"step": t, "exp_avg": ..., ...}}, "param_groups": [{"lr": ..., "params":
        [0, 1, ...]}, ...]}`` with parameters numbered through in order; a parameter that never
        had a gradient has no entry in ``"state"``. Groups of named parameters also hold
        ``"param_names"``. What torch does not have (narrow state with
        its scales, averages, counters, the schedule's state) stands under further names.
        """
        with self._alone():
            self._save_counts()
            state: dict[int, dict[str, Any]] = {}
            for i, arrays in enumerate(self._state):
                if self._counts[i][0]:
                    entry: dict[str, Any] = {}
                    if self._tells_step():
                        entry["step"] = self._counts[i][0]
                    if self._rules[self._group_of[i]] == "nadam":
                        entry["mu_product"] = self._counts[i][1]
                    entry.update({name: a.copy() for name, a in arrays.items()})
                    if entry:
                        state[i] = entry
            extra = self._extra()
        groups, first = [], 0
        for group in self.param_groups:
            count = len(group["params"])
            plain = {k: v for k, v in group.items() if k != "params"}
            names = self._names[first : first + count]
            if None not in names:  # as torch.optim's, for named parameters
                plain["param_names"] = names
            groups.append({**plain, "params": list(range(first, first + count))})
            first += count
        return {"state": state, "param_groups": groups, "fastopt": extra}

    def _extra(self) -> dict[str, Any]:
        """State without a place in torch's layout: counters, averages, the schedule's state."""
        extra: dict[str, Any] = {"n_steps": self.n_steps, "n_skipped": self.n_skipped}
        if self._state_dtype == "int8":
            extra["state_format"] = states.FORMAT
        if self.ema is not None:
            extra["ema"] = [a.copy() for a in self.ema]
        schedule: Any = self.schedule
        if hasattr(schedule, "state_dict"):
            extra["schedule"] = schedule.state_dict()
        return extra

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """In place: take over the state and options of ``state_dict`` (ours or torch.optim's).

        Parameters that have names here and there are matched by name, others by their place.

        Raises
        ------
        FormatError
            Groups, shapes or names do not fit these parameters, or 8-bit state has another
            ``state_format`` than this version's; nothing has changed then.
        """
        groups, state, extra = states.parts(state_dict)
        sizes = [len(g["params"]) for g in groups]
        own = [len(g["params"]) for g in self.param_groups]
        if sizes != own:
            raise FormatError(f"state_dict: expected groups of {own} parameters, got {sizes}")
        new_groups = []
        for old, group in zip(self.param_groups, groups, strict=True):
            kept = {k: v for k, v in group.items() if k != "params" and k not in _TORCH_ONLY}
            new_groups.append({**old, **{k: self._checked(k, v) for k, v in kept.items()}})
        self._check_groups(new_groups)
        there = [i for g in groups for i in g["params"]]
        names = iter(self._names)
        ids = [
            i
            for k, g in enumerate(groups)
            for i in states.in_order(g, [next(names) for _ in g["params"]], k)
        ]
        known = set(there)
        unknown = [k for k in state if k not in known]
        if unknown:
            raise FormatError(f"state_dict: state for unknown parameters {unknown}")
        states.check_format(state.values(), extra)
        loaded = [
            self._read_entry(i, state.get(k, {}), new_groups[self._group_of[i]])
            for i, k in enumerate(ids)
        ]
        if self._ema_decay is not None:
            self._bind_averages()
        averages = states.averages(self.ema, states.moved(extra.get("ema"), there, ids))
        most = max((t for (t, _), _ in loaded), default=0)
        n_steps = int(states.scalar(extra.get("n_steps", most), "n_steps"))
        n_skipped = int(states.scalar(extra.get("n_skipped", 0), "n_skipped"))
        schedule: Any = self.schedule
        with self._alone():
            if hasattr(schedule, "load_state_dict") and "schedule" in extra:
                schedule.load_state_dict(extra["schedule"])
            for mine, theirs in averages:
                np.copyto(mine, theirs)
            for group, new in zip(self.param_groups, new_groups, strict=True):
                dict.update(group, new)
            self._counts = [count for count, _ in loaded]
            self._state = [arrays for _, arrays in loaded]
            self._tally.n_steps, self._tally.n_skipped = n_steps, n_skipped
            self._build()

    def _read_entry(
        self, i: int, entry: Mapping[str, Any], group: Mapping[str, Any]
    ) -> tuple[tuple[int, float], states.ParamState]:
        """One parameter's counts and fresh copies of its state arrays."""
        where = f"state of parameter {i}"
        rule = self._rule(group)
        held = {
            k: v for k, v in entry.items() if k not in ("step", "mu_product") and v is not None
        }
        arrays: states.ParamState = {}
        if held:
            p = self._params[i]
            arrays = states.read(held, p, self._kept(rule, p), self._state_dtype, where)
        step = 1 if held else 0
        if self._counts_steps() or "step" in entry:
            step = int(states.scalar(entry.get("step", 0), f"step of parameter {i}"))
            if held and step == 0:
                raise FormatError(f"state_dict: step of parameter {i}: got 0, and it has state")
        product = states.scalar(entry.get("mu_product", 1.0), f"mu_product of {i}", 1.0, False)
        return (step, product), arrays

    def __getstate__(self) -> dict[str, Any]:
        state_dict = self.state_dict()  # first: it saves the counts
        kept = {name: getattr(self, name) for name in _KEPT}
        return {"state_dict": state_dict, "last": (self.grad_norm, self.skipped), **kept}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        state_dict = saved["state_dict"]
        self._start(saved["_single"])
        self.schedule = None  # it is pickled itself, not as part of the state dict
        for name, value in saved.items():
            if name not in ("state_dict", "last", "_params", "_names", "_counts", "schedule"):
                setattr(self, name, value)
        for group in state_dict["param_groups"]:
            pairs = [(saved["_names"][i], saved["_params"][i]) for i in group["params"]]
            arrays = [p if n is None else (n, p) for n, p in pairs]
            self._append_group({**group, "params": arrays})
        self.ema = None if self._ema_decay is None else [p.copy() for p in self._params]
        self._build()
        self.load_state_dict(state_dict)
        self._plan.counts = saved["_counts"]
        self._tally.grad_norm, self._tally.skipped = saved["last"]
        self.schedule = saved["schedule"]

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            sizes = sum(a.size for a in group["params"])
            options = ", ".join(f"{k}={v!r}" for k, v in group.items() if k != "params")
            lines.append(f"  group {i}: {len(group['params'])} arrays, {sizes} values; {options}")
        return "\n".join([*lines, ")"])
