"""fastopt's optimisers as torch.optim.Optimizer subclasses on CPU tensors, without a copy.

``from fastopt.integrations.torch import AdamW`` in place of ``from torch.optim import AdamW``;
torch's learning-rate schedulers, closures, hooks and state dicts work on them. Besides torch's own
options they take those of :class:`fastopt.optim.Optimizer` (``state_dtype="int8"``,
``max_grad_norm=``, ...).
"""

from __future__ import annotations

import inspect
import itertools
import operator
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

try:
    import torch
except ImportError:
    raise ImportError(
        "fastopt.integrations.torch needs torch: pip install fastopt[torch]"
    ) from None

from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fastopt import optim
from fastopt.errors import DTypeError, OptionError, UnsupportedError
from fastopt.optim import state as states

__all__ = [
    "LAMB",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
]

# How torch runs a step, not what it computes; taken so that a call need not change.
_IGNORED = ("foreach", "fused")
_REFUSED = ("capturable", "differentiable")
_BY_SHAPE = (optim.Muon, optim.Adafactor)  # what they do depends on the shape
_CODES = "_codes"
_grad = operator.attrgetter("grad")
_params = operator.itemgetter("params")
_profiling = torch.autograd._profiler_enabled


class _OnTensors(torch.optim.Optimizer):  # type: ignore[misc]
    """A torch optimizer whose step is one call of a fastopt optimizer over the same memory."""

    _family: type[optim.Optimizer]

    def __init__(self, params: Any, *args: Any, **options: Any) -> None:
        for name in _REFUSED:
            if options.pop(name, False):
                raise UnsupportedError(f"{name}: not available here; use torch's own optimizer")
        for name in _IGNORED:
            options.pop(name, None)
        try:
            bound = inspect.signature(self._family.__init__).bind(None, params, *args, **options)
        except TypeError as error:
            raise OptionError(f"{self._family.__name__}: {error}") from None
        bound.apply_defaults()
        given = {k: v for k, v in bound.arguments.items() if k not in ("self", "params", "shared")}
        self._shared = bound.arguments.get("shared", {})
        self._fast: optim.Optimizer | None = None
        # The family says which options a group has (AdamW's is Adam with decoupled decay).
        alone = {k: v for k, v in self._shared.items() if k != "copy_out"}
        defaults = self._family(np.zeros((1, 1)), **given, **alone).param_groups[0]
        super().__init__(params, {k: v for k, v in defaults.items() if k != "params"})
        self._bind(self._made(self._shared))

    # -- the optimizer underneath ------------------------------------------------------------

    def _made(self, shared: Mapping[str, Any]) -> optim.Optimizer:
        """A fastopt optimizer over the memory of the tensors as they are grouped now."""
        return self._family([self._as_group(group) for group in self.param_groups], **shared)

    def _bind(self, fast: optim.Optimizer) -> None:
        self._fast, self._tensors = fast, self._grouped()
        self._orders = tuple(map(self._order, self._tensors))
        self._permuted = any(self._orders)
        self._seen = [dict.copy(group) for group in fast.param_groups]
        self._numbers = np.zeros((2, len(self._tensors)))
        self._shown: tuple[torch.Tensor, ...] = ()

    def _grouped(self) -> tuple[torch.Tensor, ...]:
        return tuple(itertools.chain.from_iterable(map(_params, self.param_groups)))

    def _order(self, p: torch.Tensor) -> tuple[int, ...] | None:
        """The axes as they lie in memory where that is another order (channels_last)."""
        if (
            p.is_contiguous()
            or self._family in _BY_SHAPE
            or self._shared.get("state_dtype") == "int8"
        ):  # whose blocks are runs of memory
            return None
        return tuple(sorted(range(p.ndim), key=lambda axis: (-p.stride(axis), -p.shape[axis])))

    def _as_group(self, group: Mapping[str, Any]) -> dict[str, Any]:
        options = {k: v for k, v in group.items() if k in self._family._options}
        if self._family is optim.AdamW:
            options["decoupled_weight_decay"] = True
        return {"params": [_memory(p, self._order(p)) for p in group["params"]], **options}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add tensors with their own options, as torch.optim."""
        super().add_param_group(param_group)
        if self._fast is not None:
            try:
                self._renew()
            except Exception:
                self.param_groups.pop()
                raise

    def _renew(self) -> optim.Optimizer:
        """Tensors were added, replaced or given other memory, or their state was taken away: go
        on with those that are there, each with the state it has."""
        assert self._fast is not None
        gone = {p for p in self._shown if p not in self.state}
        places = {p: i for i, p in enumerate(self._tensors)}
        before = [places.get(p) for p in self._grouped()]
        shared, copies = self._shared, self._fast._copies
        if copies is not None:
            copies = [None if i is None else copies[i] for i in before]
            shared = {**shared, "copy_out": copies}
        saved, fast = self._fast.state_dict(), self._made(shared)
        fresh = fast.state_dict()
        extra = saved["fastopt"]
        if "ema" in extra:
            extra["ema"] = [
                new if i is None else extra["ema"][i]
                for i, new in zip(before, fresh["fastopt"]["ema"], strict=True)
            ]
        state = {
            j: saved["state"][i]
            for j, i in enumerate(before)
            if i is not None and i in saved["state"] and self._tensors[i] not in gone
        }
        fast.load_state_dict({**fresh, "state": state, "fastopt": extra})
        self._shared = shared
        self._bind(fast)
        self._show_state(fast)
        return fast

    def _current(self, fast: optim.Optimizer) -> bool:
        """Whether the optimizer underneath still is that of these groups, tensors and states."""
        now = self._grouped()
        if len(now) != len(self._tensors) or len(self._seen) != len(self.param_groups):
            return False
        if not all(map(operator.is_, now, self._tensors)) or len(self.state) < len(self._shown):
            return False
        laid = self._laid(self._tensors)
        if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
            return fast._plan.holds(laid)
        return all(
            p.data_ptr() == a.ctypes.data and p.is_contiguous()
            for p, a in zip(laid, fast._params, strict=True)
        )

    def _laid(self, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
        """Tensors (or None) like the parameters, with their axes as these lie in memory."""
        if not self._permuted:
            return tensors
        return tuple(
            t if t is None or order is None else t.detach().permute(order)
            for t, order in zip(tensors, self._orders, strict=True)
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """In place: one step of every tensor that has a gradient; ``closure`` as in torch.

        Raises
        ------
        ArrayError, DTypeError
            A gradient has another shape or dtype, or is sparse; nothing has been written then.
        """
        watched = _profiling() or self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        if watched or _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
            return _watched_step(self, closure)
        return self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # so that torch does not wrap it: 30 us per call

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        fast = self._fast
        assert fast is not None
        if not self._current(fast):
            fast = self._renew()
        self._sync(fast)
        grads = tuple(map(_grad, self._tensors))
        if fast._zero_grads:  # a copy of a strided gradient would be zeroed in its place
            for p, g in zip(self._tensors, grads, strict=True):
                if g is not None and g.stride() != p.stride():
                    p.grad = torch.empty_like(p, requires_grad=False).copy_(g)
            grads = tuple(map(_grad, self._tensors))
        fast.step(self._laid(grads))
        if not fast.skipped:
            changed = self._tensors
            if fast._plan.n_missing:
                changed = tuple(
                    p for p, g in zip(self._tensors, grads, strict=True) if g is not None
                )
            if fast._zero_grads:
                changed += tuple(g for g in grads if g is not None)
            torch.autograd.graph.increment_version(changed)
        if fast._plan.show_counts(self._numbers) > len(self._shown):
            self._show_state(fast)
        return loss

    @property
    def ema(self) -> list[torch.Tensor] | None:
        """With ``ema_decay``: the averages of the tensors, in their order, over the same memory
        that ``step`` moves."""
        assert self._fast is not None
        averages = self._fast.ema
        if averages is None:
            return None
        return list(map(_shaped, averages, self._orders))

    def _sync(self, fast: optim.Optimizer) -> None:
        """Options that were changed in torch's groups, by a scheduler say, since the last step."""
        for theirs, ours, seen in zip(
            self.param_groups, fast.param_groups, self._seen, strict=True
        ):
            for key in self._family._options:
                if key in theirs and theirs[key] != seen[key]:
                    ours[key] = theirs[key]
                    seen[key] = theirs[key]

    def _show_state(self, fast: optim.Optimizer) -> None:
        """torch's ``state``: tensors over the memory of ours, in torch's layout. Codes of narrow
        state have names of their own: torch's classes would take them for numbers."""
        fast._plan.show_counts(self._numbers)
        self.state.clear()
        for i, (p, arrays) in enumerate(zip(self._tensors, fast._state, strict=True)):
            if self._numbers[0, i] == 0:
                continue
            entry = {
                name if a.dtype.kind == "f" else name + _CODES: _shaped(a, self._orders[i])
                for name, a in arrays.items()
            }
            if fast._tells_step():
                entry = {"step": torch.from_numpy(self._numbers[0, i, ...]), **entry}
            if isinstance(fast, optim.NAdam):
                entry["mu_product"] = torch.from_numpy(self._numbers[1, i, ...])
            self.state[p] = entry
        self._shown = tuple(self.state)

    def state_dict(self) -> dict[str, Any]:
        """State and options in torch.optim's layout; continues in torch's own class and back."""
        assert self._fast is not None
        self._show_state(self._fast)
        extra = self._fast._extra()
        if "ema" in extra:
            extra["ema"] = list(map(_shaped, extra["ema"], self._orders))
        return {**super().state_dict(), "fastopt": extra}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """In place: take over the state and options of ``state_dict`` (ours or torch's own)."""
        assert self._fast is not None
        groups, state, extra = states.parts(state_dict)
        ids = itertools.chain.from_iterable(map(_params, groups))
        order_of = dict(zip(ids, self._orders, strict=False))
        if isinstance(extra.get("ema"), (list, tuple)):
            extra = {**extra, "ema": list(map(_unshaped, extra["ema"], self._orders))}
        plain = {
            "state": {
                i: {k.removesuffix(_CODES): _unshaped(v, order_of.get(i)) for k, v in e.items()}
                for i, e in state.items()
            },
            "param_groups": [
                {k: v for k, v in group.items() if k in (*self._family._options, "params")}
                for group in groups
            ],
            "fastopt": extra,
        }
        self._fast.load_state_dict(plain)
        theirs = {k: v for k, v in state_dict.items() if k != "fastopt"}
        super().load_state_dict({**theirs, "state": {}})
        self._seen = [dict.copy(group) for group in self._fast.param_groups]
        self._show_state(self._fast)

    def __getstate__(self) -> dict[str, Any]:
        assert self._fast is not None
        kept: dict[str, Any] = super().__getstate__()
        extra = {"shared": self._shared, "state_dict": self._fast.state_dict()}
        return {**kept, "state": {}, "fastopt": extra}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        extra = state.pop("fastopt", None)
        super().__setstate__(state)
        if extra is not None:  # from a pickle, not from load_state_dict
            self.state: Any = defaultdict(dict)
            self._shared = extra["shared"]
            self._fast = None
            fast = self._made(self._shared)
            fast.load_state_dict(extra["state_dict"])
            self._bind(fast)
            self._show_state(fast)


# The step with torch's hooks around it and its name in the profile.
_watched_step = torch.optim.Optimizer.profile_hook_step(_OnTensors._step)


def _memory(p: torch.Tensor, order: tuple[int, ...] | None) -> Any:
    """The tensor's memory as an ndarray, with its axes in this order."""
    if p.device.type != "cpu" or p.layout is not torch.strided:
        raise DTypeError(f"params: expected dense CPU tensors, got {p.device}, {p.layout}")
    if p.dtype not in (torch.float32, torch.float64):
        raise DTypeError(f"params: expected float32 or float64 tensors, got {p.dtype}")
    return (p if order is None else p.permute(order)).detach().numpy()


def _shaped(a: Any, order: tuple[int, ...] | None) -> torch.Tensor:
    """A tensor over the memory of an array whose axes stand in this order of the tensor's."""
    t = torch.from_numpy(a)
    return t if order is None or t.ndim != len(order) else t.permute(tuple(np.argsort(order)))


def _unshaped(value: Any, order: tuple[int, ...] | None) -> Any:
    """A tensor of a state dict as an array whose axes stand in this order; others as they are."""
    if not isinstance(value, torch.Tensor):
        return value
    t = value.detach().cpu()
    return (t if order is None or t.ndim != len(order) else t.permute(order)).numpy()


def _named(family: type[optim.Optimizer]) -> type[_OnTensors]:
    name = family.__name__
    doc = f"""In place: :class:`fastopt.optim.{name}` on CPU tensors, a torch.optim.Optimizer.

    Parameters
    ----------
    params : iterable of tensors or of groups
        Float32 or float64 CPU tensors, dense: contiguous or, for the elementwise rules,
        permuted (channels_last).
    *args, **options
        Those of :class:`fastopt.optim.{name}`, which are torch's where torch has the optimizer.
    """
    made: type[_OnTensors] = type(name, (_OnTensors,), {
        "_family": family, "__doc__": doc, "__module__": __name__,
    })  # fmt: skip
    return made


SGD = _named(optim.SGD)
Adam = _named(optim.Adam)
AdamW = _named(optim.AdamW)
NAdam = _named(optim.NAdam)
RAdam = _named(optim.RAdam)
Adamax = _named(optim.Adamax)
RMSprop = _named(optim.RMSprop)
Adafactor = _named(optim.Adafactor)
Adagrad = _named(optim.Adagrad)
Adadelta = _named(optim.Adadelta)
Lion = _named(optim.Lion)
LAMB = _named(optim.LAMB)
Muon = _named(optim.Muon)
