"""Genetic operators on population matrices, for those who write their own loop."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import _kernels
from fastopt._arrays import as_array, check_disjoint, name_of, out_for
from fastopt._options import choice, integer, number
from fastopt._random import Seed, key_of
from fastopt._threads import resolve
from fastopt.errors import ArrayError, OptionError
from fastopt.search.packed import packed_rows

__all__ = ["tournament", "variation"]

CROSSOVERS = {"none": 0, "uniform": 1, "one_point": 2, "two_point": 3, "sbx": 4}
SBX, UNIFORM = CROSSOVERS["sbx"], CROSSOVERS["uniform"]
FLIP = "flip"
MUTATIONS = {"none": 0, "gaussian": 1, "polynomial": 2}
# Genes of one call below which a second thread costs more than it saves.
SERIAL_BELOW = 1 << 15
_INDEX = (np.dtype(np.intp).name,)


def tournament(
    fitness: NDArray[np.float64],
    k: int,
    *,
    size: int = 3,
    seed: Seed = 0,
    generation: int = 0,
    threads: int | None = 1,
) -> NDArray[np.intp]:
    """Rows that win k tournaments: the lowest fitness of ``size`` rows drawn with replacement.

    Row r in rank order (0 best) of n wins with probability ((n - r)^s - (n - r - 1)^s) / n^s for
    size s. NaN loses to every number.

    Parameters
    ----------
    fitness : (n,) float64
    k : int
        How many winners.
    size : int
        Rows in a tournament.
    seed, generation : int
        The draws are a function of these and of the tournament's number only.

    Returns
    -------
    (k,) intp

    Raises
    ------
    ArrayError
        ``fitness`` is empty or not one-dimensional.

    Examples
    --------
    >>> tournament(np.array([3.0, 1.0, 2.0]), 4, size=50).tolist()
    [1, 1, 1, 1]
    """
    fitness = as_array(fitness, "fitness", dtypes=("float64",), cast="float64")
    if fitness.ndim != 1 or not len(fitness):
        raise ArrayError(f"fitness: expected shape (n,) with n >= 1, got {fitness.shape}")
    winners = np.empty(integer(k, "k", low=0, high=1 << 48), np.intp)
    _kernels.genetic_select.tournament(
        winners,
        fitness,
        integer(size, "size", low=1, high=(1 << 31) - 1),
        key_of(seed),
        integer(generation, "generation") & 0xFFFFFFFF,
        resolve(threads, len(winners) * size),
    )
    return winners


def variation(
    parents: NDArray[Any],
    mates: NDArray[np.intp],
    low: Any,
    high: Any,
    *,
    crossover: str = "sbx",
    rate: float = 0.9,
    gene_rate: float = 0.5,
    eta: float = 15.0,
    mutation: str = "polynomial",
    mutation_rate: float | None = None,
    mutation_scale: float | None = None,
    bits: int | None = None,
    seed: Seed = 0,
    generation: int = 0,
    threads: int | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Children of a population matrix: crossover of pairs, then mutation, in one pass.

    Parameters
    ----------
    parents : (n, d) float64, float32 or bool, or (n, ceil(bits / 64)) uint64, C-contiguous
        uint64 rows are packed bits (``pack_bits``): 64 genes in a word, those after the last 0.
    mates : (m,) intp, m even
        Children 2 p and 2 p + 1 come from rows mates[2 p] and mates[2 p + 1].
    low, high : float or (d,)
        Bounds of each gene; 0 and 1 for bool and packed bits.
    crossover : "sbx", "uniform", "one_point", "two_point" or "none"
    rate : float
        Share of pairs that cross.
    gene_rate : float
        Share of a crossing pair's genes that take part (SBX, uniform).
    eta : float
        SBX's distribution index; larger keeps children nearer their parents.
    mutation : "polynomial", "gaussian", "flip" or "none"
        "flip" is that of bool and packed bits, which have no other, nor "sbx".
    mutation_rate : float, optional
        Chance of each gene; 1 / d by default.
    mutation_scale : float, optional
        Polynomial: its index eta, by default 20. Gaussian: sigma in units of high - low, by
        default 0.1.
    bits : int, optional
        d of packed bits, which need it.
    out : array of the parents' dtype and the children's shape, optional
        Must not share memory with ``parents``.

    Returns
    -------
    (m, d) array of the parents' dtype, inside the bounds; m rows of words of packed bits.

    Raises
    ------
    OptionError
        A crossover or mutation that the dtype of ``parents`` does not have.
    ArrayError
        Bounds in the wrong order, or genes outside them.

    Notes
    -----
    The same bits for every thread count and instruction-set level; child i is a function of its
    parents, seed, generation and i. SBX's spread is cut at the nearer bound (Deb & Agrawal 1995).
    Uniforms have 23 bits in SBX, so beta stays below 2^(24 / (eta + 1)).
    NaN genes stay NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt.search import variation
    >>> parents = np.random.default_rng(0).random((4, 3))
    >>> children = variation(parents, np.array([0, 1, 2, 3]), 0.0, 1.0, seed=0)
    >>> children.shape, bool(((children >= 0) & (children <= 1)).all())
    ((4, 3), True)
    """
    kinds = ("float64", "float32", "bool", "uint64")
    parents = as_array(parents, "parents", dtypes=kinds, ndim=2)
    mates = as_array(mates, "mates", dtypes=_INDEX, ndim=1)
    packed = parents.dtype == np.uint64
    flags = packed or parents.dtype == bool
    if packed != (bits is not None):
        raise OptionError("bits: is the number of genes in a row of packed bits (uint64)")
    d = parents.shape[1] if bits is None else packed_rows(parents, "parents", bits)[1]
    choice(crossover, "crossover", CROSSOVERS)
    choice(mutation, "mutation", (*MUTATIONS, FLIP))
    if flags and (crossover == "sbx" or mutation not in ("none", FLIP)):
        raise OptionError(
            f"parents: bool and packed bits have no crossover {crossover!r} with mutation "
            f"{mutation!r}; use crossover='uniform', mutation='flip'"
        )
    if mutation == FLIP and not flags:
        raise OptionError(
            f"mutation: 'flip' is for bool and packed bits, parents are {parents.dtype}"
        )
    dtype = "float64" if flags else name_of(parents.dtype)
    lows, highs = _bound(low, "low", dtype, d), _bound(high, "high", dtype, d)
    if flags and not ((lows == 0).all() and (highs == 1).all()):
        raise ArrayError("low, high: expected 0 and 1 for bool and packed bits")
    if not (lows <= highs).all():
        raise ArrayError("low, high: expected low <= high for each gene, and no NaN")
    if not flags:
        lows, highs = _each(lows, d), _each(highs, d)
    workers = resolve(threads, len(mates) * parents.shape[1], SERIAL_BELOW)
    if not flags and _kernels.genetic.outside(parents, lows, highs, workers):
        raise ArrayError("parents: expected genes within low and high")
    child = out_for(out, "out", (len(mates), parents.shape[1]), name_of(parents.dtype))
    check_disjoint([("out", child)], [("parents", parents), ("low", lows), ("high", highs)])
    if mutation_rate is None:
        mutation_rate = 1.0 / max(d, 1)
    mutation_rate = number(mutation_rate, "mutation_rate", low=0, high=1)
    if mutation == "none":
        mutation_rate = 0.0
    key, step = key_of(seed), integer(generation, "generation") & 0xFFFFFFFF
    rate = number(rate, "rate", low=0, high=1)
    gene_rate = number(gene_rate, "gene_rate", low=0, high=1)
    if flags:
        how = (CROSSOVERS[crossover], rate, gene_rate, mutation_rate, key, step, workers)
        young, old = (child, parents) if packed else (child.view(np.uint8), parents.view(np.uint8))
        _kernels.genetic_bits.breed_bits(young, old, mates, d, *how)
        return child
    if mutation_scale is None:
        mutation_scale = 0.1 if mutation == "gaussian" else 20.0
    _kernels.genetic.breed(
        child,
        parents,
        mates,
        lows,
        highs,
        CROSSOVERS[crossover],
        rate,
        gene_rate,
        number(eta, "eta", low=0, high=1000),
        MUTATIONS[mutation],
        mutation_rate,
        number(mutation_scale, "mutation_scale", low=0),
        key,
        step,
        workers,
    )
    return child


def _bound(value: Any, name: str, dtype: str, d: int) -> NDArray[Any]:
    """One bound, or one per gene."""
    bound = as_array(value, name, dtypes=(dtype,), cast=dtype, ndim=(0, 1))
    if bound.ndim == 1 and bound.shape != (d,):
        raise ArrayError(f"{name}: expected shape ({d},), got {bound.shape}")
    return bound


def _each(bound: NDArray[Any], d: int) -> NDArray[Any]:
    return bound if bound.ndim else np.full(d, bound)
