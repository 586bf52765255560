"""fastopt's optimisers as torch.optim.Optimizer subclasses on CPU tensors, without a copy.

``from fastopt.integrations.torch import AdamW`` in place of ``from torch.optim import AdamW``;
torch's learning-rate schedulers, closures, hooks and state dicts work on them. Besides torch's own
options they take those of :class:`fastopt.optim.Optimizer` (``state_dtype="int8"``,
``max_grad_norm=``, ...).
"""

from __future__ import annotations

import inspect
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
_grad = operator.attrgetter("grad")
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
        defaults = self._family(np.zeros((1, 1)), **given, **self._shared).param_groups[0]
        super().__init__(params, {k: v for k, v in defaults.items() if k != "params"})
        self._start()

    def _start(self) -> None:
        """A fastopt optimizer over the memory of the tensors as they are grouped now."""
        self._tensors = tuple(p for group in self.param_groups for p in group["params"])
        groups = [self._as_group(group) for group in self.param_groups]
        self._fast = self._family(groups, **self._shared)
        self._seen = [dict.copy(group) for group in self._fast.param_groups]

    def _as_group(self, group: Mapping[str, Any]) -> dict[str, Any]:
        options = {k: v for k, v in group.items() if k in self._family._options}
        if self._family is optim.AdamW:
            options["decoupled_weight_decay"] = True
        return {"params": [_memory(p) for p in group["params"]], **options}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add tensors with their own options, as torch.optim."""
        super().add_param_group(param_group)
        if self._fast is not None:
            try:
                self._fast.add_param_group(self._as_group(self.param_groups[-1]))
            except Exception:
                self.param_groups.pop()
                raise
            self._tensors = tuple(p for group in self.param_groups for p in group["params"])
            self._seen = [dict.copy(group) for group in self._fast.param_groups]

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

    step.hooked = True  # type: ignore[attr-defined]  # so that torch does not wrap it: 30 us a call

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        fast = self._fast
        assert fast is not None
        self._sync(fast)
        if not self._in_place(fast):
            fast = self._rebind()
        grads = tuple(map(_grad, self._tensors))
        if fast._zero_grads:  # a copy of a strided gradient would be zeroed in its place
            for p, g in zip(self._tensors, grads, strict=True):
                if g is not None and not g.is_contiguous():
                    p.grad = g.contiguous()
            grads = tuple(map(_grad, self._tensors))
        fast.step(grads)
        missing = sum(g is None for g in grads) if fast._plan.n_missing else 0
        if not fast.skipped:
            changed = self._tensors
            if missing:
                changed = tuple(
                    p for p, g in zip(self._tensors, grads, strict=True) if g is not None
                )
            torch.autograd.graph.increment_version(changed)
        if len(self.state) < len(self._tensors) - missing:
            self._show_state(fast)
        return loss

    def _in_place(self, fast: optim.Optimizer) -> bool:
        """Whether the tensors still lie where the optimizer was bound to them."""
        if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
            return fast._plan.holds(self._tensors)
        return all(
            p.data_ptr() == a.ctypes.data for p, a in zip(self._tensors, fast._params, strict=True)
        )

    def _rebind(self) -> optim.Optimizer:
        """Somebody gave a tensor other memory (``p.data = ...``): go on there."""
        assert self._fast is not None
        state = self._fast.state_dict()
        self._start()
        self._fast.load_state_dict(state)
        self._show_state(self._fast)
        return self._fast

    @property
    def ema(self) -> list[torch.Tensor] | None:
        """With ``ema_decay``: the averages of the tensors, in their order, over the same memory
        that ``step`` moves."""
        assert self._fast is not None
        averages = self._fast.ema
        return None if averages is None else [torch.from_numpy(a) for a in averages]

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
        """torch's ``state``: tensors over the memory of ours, in torch's layout."""
        counts = fast._plan.counts
        self.state.clear()
        for p, arrays, (t, product) in zip(self._tensors, fast._state, counts, strict=True):
            if t == 0:
                continue
            entry = {name: torch.from_numpy(a) for name, a in arrays.items()}
            if fast._tells_step():
                entry = {"step": torch.tensor(float(t)), **entry}
            if isinstance(fast, optim.NAdam):
                entry["mu_product"] = torch.tensor(product)
            self.state[p] = entry

    def state_dict(self) -> dict[str, Any]:
        """State and options in torch.optim's layout; continues in torch's own class and back."""
        assert self._fast is not None
        self._show_state(self._fast)
        extra = self._fast._extra()
        if "ema" in extra:
            extra["ema"] = [torch.from_numpy(a) for a in extra["ema"]]
        return {**super().state_dict(), "fastopt": extra}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """In place: take over the state and options of ``state_dict`` (ours or torch's own)."""
        assert self._fast is not None
        plain = {
            "state": {
                i: {k: _plain(v) for k, v in e.items()} for i, e in state_dict["state"].items()
            },
            "param_groups": [
                {k: v for k, v in group.items() if k in (*self._family._options, "params")}
                for group in state_dict["param_groups"]
            ],
            "fastopt": state_dict.get("fastopt", {}),
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
            self._start()
            assert self._fast is not None
            self._fast.load_state_dict(extra["state_dict"])
            self._show_state(self._fast)


# The step with torch's hooks around it and its name in the profile.
_watched_step = torch.optim.Optimizer.profile_hook_step(_OnTensors._step)


def _memory(p: torch.Tensor) -> Any:
    """The tensor's memory as an ndarray."""
    if p.device.type != "cpu" or p.layout is not torch.strided:
        raise DTypeError(f"params: expected dense CPU tensors, got {p.device}, {p.layout}")
    if p.dtype not in (torch.float32, torch.float64):
        raise DTypeError(f"params: expected float32 or float64 tensors, got {p.dtype}")
    return p.detach().numpy()


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _named(family: type[optim.Optimizer]) -> type[_OnTensors]:
    name = family.__name__
    doc = f"""In place: :class:`fastopt.optim.{name}` on CPU tensors, a torch.optim.Optimizer.

    Parameters
    ----------
    params : iterable of tensors or of groups
        Contiguous float32 or float64 CPU tensors.
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
