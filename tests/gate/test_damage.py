"""A few of the damaged calls and files that tests/damage.py makes; the page has many."""

from __future__ import annotations

import numpy as np
import pytest

from tests import damage


@pytest.mark.parametrize("name", damage.CALLS)
@pytest.mark.filterwarnings("ignore")
def test_the_calls_are_valid_before_they_are_damaged(name):
    call = damage.CALLS[name](np.random.default_rng(0))
    call.function(*call.args, **call.options)


@pytest.mark.parametrize("part", range(4))
def test_damaged_calls_are_refused_by_name_and_change_nothing(part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a damaged option may be the name of a file
    outcomes = [damage.run_call(100 + part, k) for k in range(700)]
    assert [o.note for o in outcomes if o.kind in ("foreign", "changed")] == []
    assert sum(o.kind == "refused" for o in outcomes) > 200  # the generator does damage
    assert sum(o.kind == "passed" for o in outcomes) > 50


@pytest.mark.parametrize("name", damage.READERS)
def test_damaged_files_are_refused_or_read_right(name, tmp_path):
    reader = damage.READERS[name]
    if reader.needs is not None:
        pytest.importorskip(reader.needs)
    count = 40 if "compressed" in name else 200
    outcomes = list(damage.run_mutants(name, 0, count, tmp_path))
    assert [o.note for o in outcomes if o.kind in ("foreign", "silent")] == []
    assert sum(o.kind == "refused" for o in outcomes) > count // 5


def test_damaged_states_of_engines_are_refused_and_change_nothing():
    outcomes = list(damage.run_states(0, 400))
    assert [o.note for o in outcomes if o.kind in ("foreign", "silent", "changed")] == []
    assert sum(o.kind == "refused" for o in outcomes) > 200


def test_the_counter_sees_what_it_looks_for(monkeypatch):
    def writes(a):
        a[0] = 7
        raise damage.FastoptError

    def fails(a):
        raise ZeroDivisionError

    for function, kind in ((writes, "changed"), (fails, "foreign")):
        monkeypatch.setattr(
            damage, "CALLS", {"f": lambda rng, f=function: damage.Call(f, [np.zeros(3)], {})}
        )
        monkeypatch.setattr(damage, "damaged", lambda call, rng: call)
        assert damage.run_call(0, 0).kind == kind
