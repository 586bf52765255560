"""`prune`: removes connections of one array, or of a list or dict of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastopt import _threads
from fastopt._arrays import Array, as_array, as_target, check_disjoint, check_finite
from fastopt._interrupts import interruptible
from fastopt._options import choice, integer, number
from fastopt._random import Seed, generator_of
from fastopt.calibration import Gram, check_gram
from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.pruning import magnitude, obs, saliency
from fastopt.pruning.patterns import Blocks, NofM, block_masks, pattern_of
from fastopt.pruning.sparsegpt import sparsegpt

__all__ = ["Pruned", "prune"]

_METHODS = ("magnitude", "random", "movement", "obs", "sparsegpt", "wanda")
_WITH_GRAM = ("obs", "sparsegpt", "wanda")


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """What :func:`prune` made.

    Attributes
    ----------
    arrays : array, list or dict
        The pruned weights, structured as the input was.
    masks : array, list, dict or None
        True where a weight stays: bool of the weight's shape, or packed bits (``masks="packed"``:
        uint8, element i in bit i % 8 of byte i // 8 of the flattened array).
    threshold : float, list or dict
        The largest magnitude or score removed (for blocks: the largest root mean square; 0 where
        nothing was): one number under ``scope="global"``
        and for a single array, else structured as the input was.
    sparsity : float
        Fraction of all elements that were removed.
    """

    arrays: Any
    masks: Any
    threshold: Any
    sparsity: float


def prune(
    w: Any,
    sparsity: float = 0.8,
    *,
    pattern: str = "unstructured",
    method: str | None = None,
    scope: str = "global",
    gram: Any = None,
    grads: Any = None,
    axis: int = -1,
    damp: float = 1e-3,
    seed: Seed = None,
    masks: str = "bool",
    out: Any = None,
    threads: int | None = None,
) -> Pruned:
    """Set the k = round(sparsity * n) least important weights to zero, exactly k of them.

    Parameters
    ----------
    w : array, list, tuple or dict of arrays
        Weights, float32 or float64, any shape. Not changed unless passed as ``out``.
    sparsity : float
        Fraction of the elements (or blocks) that become zero, 0..1. A pattern "N:M" fixes it at
        1 - N / M and this argument is not used; the result's ``.sparsity`` tells what was reached.
    pattern : "unstructured", "N:M" or "RxC"
        Any element may go; or the N largest of each M (such as "2:4", M <= 32) along ``axis``
        stay; or blocks of R rows x C columns (such as "4x1") of a 2-D array stay or go whole,
        by the root mean square of their elements.
    method : str, optional
        What makes a weight important: "magnitude" |w| (the default without ``gram``); "random";
        "movement" -w dL/dw, with ``grads``; and with ``gram``: "obs" (the default), the output's
        loss, the rest refitted by least squares; "sparsegpt", the same in one faster pass;
        "wanda", |w| times the norm of its input, compared per output, no refit.
    scope : "global", "local", "erk" or "lamp"
        How arrays share the budget: one threshold for all together, the same fraction of each,
        more of the larger layers by Erdos-Renyi-Kernel, or one threshold for layer-adaptive
        scores (LAMP).
    gram : Gram, or list, tuple or dict of them, optional
        Of the input of each weight, which is then (n_out, n_in). Far better than magnitudes at
        high sparsity.
    grads : array, list, tuple or dict, optional
        Gradients of the loss with respect to ``w``, structured as ``w``; may be summed over steps.
    axis : int
        The axis of an "N:M" pattern.
    damp : float
        Ridge on the Gram, a fraction of its mean diagonal.
    seed : int, SeedSequence or Generator, optional
        For ``method="random"``.
    masks : "bool", "packed" or "none"
        Form of the masks that come back: a byte or a bit per element, or nothing.
    out : array, list, tuple or dict, optional
        Where the result goes, structured and shaped as ``w``; ``out=w`` prunes in place.
    threads : int, optional
        Threads; the result does not depend on them.

    Returns
    -------
    Pruned
        ``.arrays``, ``.masks``, ``.threshold``, ``.sparsity``.

    Raises
    ------
    DTypeError, ArrayError, OptionError
        A bad argument, or more elements are to go than are numbers. Nothing was written, but for
        ``out`` of "N:M" where it is large and not ``w``.

    Notes
    -----
    Rounding: k is rounded half to even, as in torch.nn.utils.prune. Ties: among equal magnitudes
    the earlier element goes first (earlier array, then C order), so the count is exact and the
    result is one for every machine and thread count. NaN counts as larger than infinity and is
    never removed. A removed element becomes +0; a kept one keeps its bits. Cost: one read of the
    data to select (a sampled bracket, then a partition of the about 3 % inside), one read and one
    write to apply; the extra memory is about 4 % of the data, plus the masks.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> p = fastopt.prune(np.array([3.0, -0.5, 0.1, 2.0]), sparsity=0.5)
    >>> p.arrays.tolist(), p.masks.tolist(), p.threshold
    ([3.0, 0.0, 0.0, 2.0], [True, False, False, True], 0.5)
    """
    fraction = number(sparsity, "sparsity", low=0.0, high=1.0)
    rule = pattern_of(pattern, integer(axis, "axis"))
    ridge = number(damp, "damp", low=0.0)
    choice(scope, "scope", ("global", "local", "erk", "lamp"))
    chosen = _method_of(method, gram, grads)
    choice(masks, "masks", ("bool", "packed", "none"))
    names, given = _flatten(w, "w")
    arrays = [as_array(a, name) for name, a in zip(names, given, strict=True)]
    by_magnitude = chosen == "magnitude" and scope != "lamp"
    if by_magnitude and rule is None and scope == "global" and len({a.dtype for a in arrays}) > 1:
        raise DTypeError(
            "w: float32 and float64 arrays cannot share one threshold; "
            'use scope="local" or one dtype'
        )
    targets = _targets(out, w, names, arrays)
    used = _threads.resolve(threads, sum(a.size for a in arrays))
    shares = _shares(scope, arrays, fraction)
    grams = None if gram is None else _grams(gram, names, arrays)
    if grams is not None and chosen in ("obs", "sparsegpt"):
        work = sum(30.0 * g.n**2 * (g.n + len(a)) for g, a in zip(grams, arrays, strict=True))
        found, keeps, tops = interruptible(
            work,
            _with_data,
            arrays,
            names,
            grams,
            shares,
            rule,
            chosen == "sparsegpt",
            ridge,
            used,
        )
    elif by_magnitude and rule is None:
        found, keeps, tops = _smallest(arrays, shares, masks != "none", targets, used)
    elif by_magnitude and rule is not None:
        found, keeps, tops = _patterned(
            arrays, names, shares, rule, masks != "none", targets, used
        )
    else:
        scores = _scores(chosen, scope, arrays, rule, grams, w, grads, seed)
        if rule is None:
            _, keeps, tops = _smallest(scores, shares, True, None, used)
        else:
            _, keeps, tops = _patterned(scores, names, shares, rule, True, None, used)
        found = [np.where(k, a, a.dtype.type(0)) for a, k in zip(arrays, keeps, strict=True)]
    if targets is not None and found is not targets:  # every check is done
        for target, a in zip(targets, found, strict=True):
            target[...] = a
        found = targets
    total = sum(a.size for a in arrays)
    if rule is None and by_magnitude:
        gone = sum(round(s.fraction * sum(arrays[i].size for i in s.members)) for s in shares)
    elif isinstance(rule, NofM):
        gone = total // rule.m * (rule.m - rule.n)
    else:
        gone = total - sum(int(k.sum()) for k in keeps)
    if masks == "packed":
        keeps = [np.packbits(k, bitorder="little") for k in keeps]
    one = scope in ("global", "lamp") or not isinstance(w, (list, tuple, Mapping))
    return Pruned(
        arrays=_rebuild(w, found),
        masks=None if masks == "none" else _rebuild(w, keeps),
        threshold=(tops[0] if tops else 0.0) if one else _rebuild(w, tops),
        sparsity=gone / total if total else 0.0,
    )


class Share(NamedTuple):
    """Arrays that are ranked together, and the fraction of them that goes."""

    members: list[int]
    fraction: float


def _method_of(method: Any, gram: Any, grads: Any) -> str:
    """The method's name, after a check that the data it needs are given and no others."""
    default = "magnitude" if gram is None else "obs"
    chosen = default if method is None else choice(method, "method", _METHODS)
    for name, given, users in (("gram", gram, _WITH_GRAM), ("grads", grads, ("movement",))):
        if (given is None) == (chosen in users):
            wanted = "needs" if given is None else "does not use"
            raise OptionError(f"{name}: method={chosen!r} {wanted} it")
    return chosen


def _shares(scope: str, arrays: list[Array], fraction: float) -> list[Share]:
    """How the arrays share the budget."""
    every = list(range(len(arrays)))
    if scope in ("global", "lamp"):
        return [Share(every, fraction)] if every else []
    if scope == "erk":
        fractions = saliency.erk_fractions([a.shape for a in arrays], fraction)
        return [Share([i], f) for i, f in enumerate(fractions)]
    return [Share([i], fraction) for i in every]


def _scores(
    method: str,
    scope: str,
    arrays: list[Array],
    rule: NofM | Blocks | None,
    grams: list[Gram] | None,
    w: Any,
    grads: Any,
    seed: Seed,
) -> list[Array]:
    """The scores that are ranked in place of magnitudes."""
    if method == "movement":
        called, given = _flatten(grads, "grads")
        if len(given) != len(arrays) or isinstance(grads, Mapping) != isinstance(w, Mapping):
            raise DTypeError(f"grads: expected {len(arrays)} arrays structured as w")
        if isinstance(grads, Mapping):
            if set(grads) != set(w):
                raise DTypeError("grads: expected the keys of w")
            given = [grads[key] for key in w]
        slopes = [
            as_array(g, name, shape=a.shape)
            for g, name, a in zip(given, called, arrays, strict=True)
        ]
        scores = [saliency.movement(a, g) for a, g in zip(arrays, slopes, strict=True)]
    elif grams is not None:  # wanda
        scores = [
            saliency.wanda(a, g, comparable=rule is None)
            for a, g in zip(arrays, grams, strict=True)
        ]
    elif method == "random":
        generator = generator_of(seed)
        scores = [saliency.random(a, generator) for a in arrays]
    else:
        scores = [np.abs(a).astype(np.float64) for a in arrays]
    return [saliency.lamp(s) for s in scores] if scope == "lamp" else scores


def _smallest(
    arrays: list[Array],
    shares: list[Share],
    with_masks: bool,
    targets: list[Array] | None,
    threads: int,
) -> tuple[list[Array], list[Any], list[float]]:
    """Unstructured magnitudes: nothing is written before every group's cut is known."""
    cuts = []
    for group, fraction in shares:
        members = [arrays[i] for i in group]
        k = round(fraction * sum(a.size for a in members))
        cuts.append(magnitude.cut_at(members, k, threads))
    outs = targets if targets is not None else [np.empty(a.shape, a.dtype) for a in arrays]
    keeps = [np.empty(a.shape, np.bool_) if with_masks else None for a in arrays]
    for (group, _), cut in zip(shares, cuts, strict=True):
        magnitude.zero_below(
            [outs[i] for i in group],
            [keeps[i] for i in group],
            [arrays[i] for i in group],
            cut,
            threads,
            fresh=targets is None,
        )
    tops = [
        magnitude.number_of(cut.bits, arrays[group[0]].dtype)
        for (group, _), cut in zip(shares, cuts, strict=True)
    ]
    return outs, keeps, tops


def _patterned(
    arrays: list[Array],
    names: list[str],
    shares: list[Share],
    rule: NofM | Blocks,
    with_masks: bool,
    targets: list[Array] | None,
    threads: int,
) -> tuple[list[Array], list[Any], list[float]]:
    """N of M, or blocks, by magnitude."""
    if isinstance(rule, Blocks):
        keeps: list[Array] = [np.empty(0, np.bool_)] * len(arrays)
        tops = []
        for group, fraction in shares:
            members, called = [arrays[i] for i in group], [names[i] for i in group]
            masks, top = block_masks(rule, members, called, fraction, threads)
            tops.append(top)
            for i, mask in zip(group, masks, strict=True):
                keeps[i] = mask
        found = [np.where(k, a, a.dtype.type(0)) for a, k in zip(arrays, keeps, strict=True)]
        return found, keeps, tops
    for a, name in zip(arrays, names, strict=True):
        rule.check(a, name)
    # Nothing that was given is written before every array has been checked. The exception is a
    # large ``out`` that is no input: looking for NaN first would cost a third of the pass.
    places = [] if targets is None else list(zip(targets, arrays, strict=True))
    direct = bool(places) and (
        all(_threads.streams(a, out, False) and not _same(a, out) for out, a in places)
        or not any(magnitude.holds_nan(a, threads) for a in arrays)
    )
    found = [np.empty(a.shape, a.dtype) for a in arrays] if not direct else targets or []
    stay = [np.empty(a.shape, np.bool_) if with_masks else None for a in arrays]
    largest = [
        rule.apply(out, keep, a, name, threads, fresh=not direct)
        for out, keep, a, name in zip(found, stay, arrays, names, strict=True)
    ]
    tops = [max((largest[i] for i in group), default=0.0) for group, _ in shares]
    return found, stay, tops


def _with_data(
    arrays: list[Array],
    names: list[str],
    grams: list[Gram],
    shares: list[Share],
    rule: NofM | Blocks | None,
    one_pass: bool,
    damp: float,
    threads: int,
) -> tuple[list[Array], list[Any], list[float]]:
    """Optimal Brain Surgeon where it is affordable, alternating directions elsewhere; or SparseGPT
    in one pass."""
    for a, name in zip(arrays, names, strict=True):
        check_finite(a, name)
        if isinstance(rule, NofM):
            rule.check(a, name)
    wide = [a.astype(np.float64) for a in arrays]
    moments = [obs.moment(g, damp) for g in grams]
    keeps: list[Array] = [np.ones(a.shape, np.bool_) for a in arrays]
    fitted: dict[int, Array] = {}
    for group, fraction in shares:
        small = rule is None and not one_pass
        exact = [i for i in group if small and arrays[i].shape[1] <= obs.EXACT]
        ranked = [obs.exact_losses(moments[i], wide[i], threads) for i in exact]
        if ranked:
            losses = prune([loss for _, loss in ranked], fraction, threads=threads)
            for i, (order, _), stay in zip(exact, ranked, losses.masks, strict=True):
                np.put_along_axis(keeps[i], order, stay, axis=1)
        for i in group:
            if i in exact or not arrays[i].size:
                continue

            def project(x: Array, name: str = names[i], fraction: float = fraction) -> Array:
                if isinstance(rule, Blocks):
                    return block_masks(rule, [x], [name], fraction, threads)[0][0]
                if rule is None:
                    mask: Array = prune(x, fraction, threads=threads).masks
                    return mask
                mask = np.empty(x.shape, np.bool_)
                rule.apply(np.empty_like(x), mask, x, name, threads, fresh=True)
                return mask

            if one_pass:
                fitted[i], keeps[i] = sparsegpt(moments[i], wide[i], project, _width(rule))
            else:
                keeps[i] = obs.alternate(moments[i], wide[i], project)
    found = [
        (fitted[i] if i in fitted else obs.fit(moments[i], wide[i], keeps[i])).astype(a.dtype)
        for i, a in enumerate(arrays)
    ]
    return found, keeps, [_largest_removed(arrays, keeps, group) for group, _ in shares]


def _width(rule: NofM | Blocks | None) -> int:
    """Columns whose mask SparseGPT chooses together: a group of N:M, else 128 as in the paper."""
    if isinstance(rule, NofM):
        return rule.m
    step = 1 if rule is None else rule.columns
    return max(step, 128 // step * step)


def _largest_removed(arrays: list[Array], keeps: list[Array], group: list[int]) -> float:
    return max((float(np.abs(arrays[i][~keeps[i]]).max(initial=0)) for i in group), default=0.0)


def _grams(gram: Any, names: list[str], arrays: list[Array]) -> list[Gram]:
    given = [gram] if isinstance(gram, Gram) else _flatten(gram, "gram")[1]
    if len(given) != len(arrays):
        raise DTypeError(f"gram: expected one Gram for each of {len(arrays)} arrays")
    for g, a, name in zip(given, arrays, names, strict=True):
        check_gram(g)
        if a.ndim != 2 or a.shape[1] != g.n:
            raise ArrayError(
                f"{name}: expected shape (n_out, {g.n}), one column per input of the Gram, "
                f"got {a.shape}"
            )
    return list(given)


def _flatten(w: Any, name: str) -> tuple[list[str], list[Any]]:
    """Names for messages and the members, in order."""
    if isinstance(w, Mapping):
        return [f"{name}[{key!r}]" for key in w], list(w.values())
    if isinstance(w, (list, tuple)) and not _is_number_list(w):
        return [f"{name}[{i}]" for i in range(len(w))], list(w)
    return [name], [w]


def _is_number_list(w: Any) -> bool:
    """A nested list of numbers is one array, not a list of arrays."""
    while isinstance(w, (list, tuple)) and w:
        w = w[0]
    return isinstance(w, (int, float, np.generic))


def _rebuild(w: Any, members: list[Any]) -> Any:
    """``members`` in the structure of ``w``."""
    if isinstance(w, Mapping):
        return dict(zip(w, members, strict=True))
    if isinstance(w, (list, tuple)) and not _is_number_list(w):
        return tuple(members) if isinstance(w, tuple) else members
    return members[0]


def _same(a: Array, b: Array) -> bool:
    """Whether two arrays of one shape have the same memory; they never overlap in part."""
    return bool(a.__array_interface__["data"] == b.__array_interface__["data"])


def _targets(out: Any, w: Any, names: list[str], arrays: list[Array]) -> list[Array] | None:
    if out is None:
        return None
    if isinstance(w, Mapping) and isinstance(out, Mapping):
        if set(out) != set(w):
            raise DTypeError("out: expected the keys of w")
        given = [out[key] for key in w]
    else:
        given = _flatten(out, "out")[1]
    if len(given) != len(arrays) or isinstance(out, Mapping) != isinstance(w, Mapping):
        raise DTypeError(f"out: expected {len(arrays)} arrays structured as w, got {len(given)}")
    outs = [
        as_target(o, name.replace("w", "out", 1), dtypes=(a.dtype.name,), shape=a.shape)
        for name, o, a in zip(names, given, arrays, strict=True)
    ]
    written = [(name.replace("w", "out", 1), o) for name, o in zip(names, outs, strict=True)]
    for i, o in enumerate(outs):
        others = [(n, a) for j, (n, a) in enumerate(zip(names, arrays, strict=True)) if j != i]
        if not _same(o, arrays[i]):
            others.append((names[i], arrays[i]))
        check_disjoint([written[i]], [*written[i + 1 :], *others])
    return outs
