"""Genetic operators on orders: permutations in, permutations out.

OX: Davis, IJCAI 1985. PMX: Goldberg & Lingle, ICGA 1985. Edge recombination: Whitley et al., ICGA
1989. Reversal and segment moves keep all edges but two or three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastopt.search.layout import Matrix

__all__ = ["CROSSOVERS", "edge", "moved", "order_crossover", "pmx", "reversed_part"]

Order: TypeAlias = NDArray[np.intp]


def cut(u: float, v: float, n: int) -> tuple[int, int]:
    """Two cut points 0 <= i < j <= n of uniforms, each pair as likely."""
    i, j = int(u * (n + 1)), int(v * n)
    j += j >= i
    return min(i, j), max(i, j)


def order_crossover(a: Order, b: Order, u: Matrix) -> Order:
    """OX: a's part between two cuts stays, the rest follows in b's order after the second cut."""
    n = len(a)
    i, j = cut(u[0], u[1], n)
    kept = np.zeros(n, bool)
    kept[a[i:j]] = True
    turned = np.concatenate([b[j:], b[:j]])
    rest = turned[~kept[turned]]
    child: Order = np.empty_like(a)
    child[i:j] = a[i:j]
    child[j:], child[:i] = rest[: n - j], rest[n - j :]
    return child


def pmx(a: Order, b: Order, u: Matrix) -> Order:
    """PMX: a's part between two cuts, elsewhere b's places, through the part's pairs if taken."""
    n = len(a)
    i, j = cut(u[0], u[1], n)
    child: Order = b.copy()
    child[i:j] = a[i:j]
    place = np.full(n, -1, np.intp)
    place[a[i:j]] = np.arange(i, j)
    for k in (*range(i), *range(j, n)):
        value = b[k]
        while place[value] >= 0:
            value = b[place[value]]
        child[k] = value
    return child


def edge(a: Order, b: Order, u: Matrix) -> Order:
    """Edge recombination: from each place on to the neighbour (in a or b) with the fewest left."""
    n = len(a)
    near: list[set[int]] = [set() for _ in range(n)]
    for order in (a.tolist(), b.tolist()):
        for k, value in enumerate(order):
            near[value] |= {order[k - 1], order[(k + 1) % n]} - {value}
    left = set(range(n))
    at = int(a[int(u[0] * n)])
    child = np.empty_like(a)
    for k in range(n):
        child[k] = at
        left.discard(at)
        for other in near[at]:
            near[other].discard(at)
        if near[at]:
            at = min(near[at], key=lambda v: (len(near[v]), v))
        elif left:
            at = min(left)
    return child


CROSSOVERS: dict[str, Callable[[Order, Order, Matrix], Order]] = {
    "ox": order_crossover,
    "pmx": pmx,
    "edge": edge,
}


def reversed_part(a: Order, u: Matrix) -> Order:
    """The part between two cuts backwards."""
    i, j = cut(u[0], u[1], len(a))
    child: Order = a.copy()
    child[i:j] = a[i:j][::-1]
    return child


def moved(a: Order, u: Matrix) -> Order:
    """The part between two cuts taken out and put back at another place."""
    n = len(a)
    i, j = cut(u[0], u[1], n)
    part, rest = a[i:j], np.concatenate([a[:i], a[j:]])
    k = int(u[2] * (len(rest) + 1))
    return np.asarray(np.concatenate([rest[:k], part, rest[k:]]))
