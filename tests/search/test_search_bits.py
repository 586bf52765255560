"""Spaces of Bools alone: their populations are packed, 64 bits in a word."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt.search import NSGA2, Bool, Genetic, Space
from fastopt.search.packed import pack, unpack


@pytest.mark.parametrize("d", [1, 7, 64, 65, 200])
def test_packed_bits_are_what_was_packed(d):
    bits = np.random.default_rng(d).integers(0, 2, (5, d))
    words = pack(bits.astype(np.float64))
    assert words.shape == (5, -(-d // 64))
    np.testing.assert_array_equal(unpack(words, d), bits)
    for row, own in zip(words, bits):
        number = sum(int(w) << (64 * i) for i, w in enumerate(row))
        assert number == sum(int(b) << j for j, b in enumerate(own))


@pytest.mark.parametrize("engine", [Genetic, NSGA2])
def test_a_population_of_bits_is_packed(engine):
    space = Space(**{f"b{i}": Bool() for i in range(100)})
    algo = engine(space, population=20, seed=1)
    told, y = [], []
    for _ in range(6):
        x = algo.propose(20)
        told.append(x)
        y.append(
            x.sum(axis=1) if engine is Genetic else np.stack([x[:, :50], x[:, 50:]]).sum(-1).T
        )
        algo.learn(x, y[-1])
    state = algo.state_dict()
    assert state["genomes"].dtype == np.uint64
    assert state["genomes"].shape == (20, 2)
    if engine is Genetic:
        order = np.argsort(np.concatenate(y), kind="stable")[:20]
        want = np.concatenate(told)[order]
        have = unpack(state["genomes"], 100)
        assert sorted(map(bytes, have)) == sorted(map(bytes, want.astype(np.uint8)))
    else:
        values, merits = algo.pareto
        np.testing.assert_array_equal(values[:, :50].sum(axis=1), merits[:, 0])
    columns = space.columns_of(x)
    assert all((columns[n] == x[:, i].astype(bool)).all() for i, n in enumerate(space.names))
    other = engine(space, population=20, seed=9)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.propose(20), algo.propose(20))
