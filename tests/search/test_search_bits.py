"""Spaces of Bools alone: their populations are packed, 64 bits in a word."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt.errors import ArrayError, DTypeError, OptionError
from fastopt.search import (
    NSGA2,
    Bool,
    Genetic,
    Space,
    count_bits,
    pack_bits,
    tournament,
    unpack_bits,
    variation,
)


@pytest.mark.parametrize("d", [1, 7, 64, 65, 200])
def test_packed_bits_are_what_was_packed(d):
    bits = np.random.default_rng(d).integers(0, 2, (5, d))
    words = pack_bits(bits.astype(np.float64))
    assert words.shape == (5, -(-d // 64))
    np.testing.assert_array_equal(unpack_bits(words, d), bits)
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
        have = unpack_bits(state["genomes"], 100)
        assert sorted(map(bytes, have)) == sorted(map(bytes, want.astype(np.uint8)))
    else:
        values, merits = algo.pareto
        np.testing.assert_array_equal(values[:, :50].sum(axis=1), merits[:, 0])
    columns = space.columns_of(x)
    assert all((columns[n] == x[:, i].astype(bool)).all() for i, n in enumerate(space.names))
    other = engine(space, population=20, seed=9)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.propose(20), algo.propose(20))


@pytest.mark.parametrize("d", [1, 63, 70, 1000])
@pytest.mark.parametrize("crossover", ["none", "one_point", "two_point"])
def test_packed_children_are_those_of_bools(d, crossover):
    parents = np.random.default_rng(d).random((8, d)) < 0.5
    mates = np.random.default_rng(0).integers(0, 8, 12)
    options = {"crossover": crossover, "mutation": "flip", "seed": 3, "generation": 5}
    want = variation(parents, mates, 0, 1, **options)
    for threads in (1, 3):
        words = variation(pack_bits(parents), mates, 0, 1, bits=d, threads=threads, **options)
        np.testing.assert_array_equal(unpack_bits(words, d), want)
        np.testing.assert_array_equal(pack_bits(want), words)  # tails are 0
        np.testing.assert_array_equal(count_bits(words), want.sum(axis=1))


def test_packed_uniform_crossover_takes_each_gene_from_one_of_the_parents():
    d, pairs = 130, 400
    parents = np.zeros((2, d), bool)
    parents[1] = True
    mates = np.tile([0, 1], pairs)
    options = {"crossover": "uniform", "mutation": "none", "rate": 1.0, "bits": d, "seed": 1}
    words = variation(pack_bits(parents), mates, 0, 1, **options)
    child = unpack_bits(words, d)
    np.testing.assert_array_equal(child[::2] + child[1::2], 1)  # siblings share out the genes
    share = child[::2].mean(axis=0)
    assert (np.abs(share - 0.5) < 5 * 0.5 / np.sqrt(pairs)).all()
    np.testing.assert_array_equal(words, variation(pack_bits(parents), mates, 0, 1, **options))
    kept = variation(pack_bits(parents), mates, 0, 1, **{**options, "rate": 0.0})
    np.testing.assert_array_equal(kept, pack_bits(parents)[mates])


def test_packed_bits_solve_onemax():
    d, n = 300, 60
    bits = pack_bits(np.random.default_rng(0).random((n, d)) < 0.5)
    how = {"crossover": "uniform", "mutation": "flip", "bits": d}
    for generation in range(120):
        mates = tournament((d - count_bits(bits)).astype(float), n, size=4, generation=generation)
        bits = variation(bits, mates, 0, 1, generation=generation, **how)
    assert count_bits(bits).max() >= d - 3


def test_packed_input_is_checked():
    bits = pack_bits(np.ones((4, 70)))
    mates = np.array([0, 1])
    good = {"crossover": "uniform", "mutation": "flip", "bits": 70}
    out = np.empty((2, 2), np.uint64)
    assert variation(bits, mates, 0, 1, out=out, **good) is out
    for bad in ({"bits": None}, {"crossover": "sbx"}, {"mutation": "gaussian"}):
        with pytest.raises(OptionError):
            variation(bits, mates, 0, 1, **{**good, **bad})
    with pytest.raises(OptionError):
        variation(np.ones((4, 70)), mates, 0, 1, bits=70)
    for wrong in (64, 129):
        with pytest.raises(ArrayError):
            variation(bits, mates, 0, 1, **{**good, "bits": wrong})
        with pytest.raises(ArrayError):
            unpack_bits(bits, wrong)
    with pytest.raises(ArrayError):
        variation(bits, mates, 0, 2, **good)
    with pytest.raises(ArrayError):
        variation(bits, mates, 0, 1, out=bits[:2], **good)
    with pytest.raises(DTypeError):
        count_bits(np.ones((2, 2)))
    with pytest.raises(ArrayError):
        pack_bits(np.ones(3))
