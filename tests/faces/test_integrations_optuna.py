"""The Optuna sampler under Optuna's own sampler tests, and what those do not look at."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest

optuna = pytest.importorskip("optuna")
samplers = pytest.importorskip("optuna.testing.pytest_samplers")

from fastopt.errors import OptionError  # noqa: E402
from fastopt.integrations.optuna import FastoptSampler  # noqa: E402
from fastopt.search.methods import METHODS  # noqa: E402

SINGLE = [m for m in METHODS if m not in ("nsga2", "portfolio")]
optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Methods:
    @pytest.fixture(params=["auto", "random", "genetic", "greedy"])
    def sampler(self, request):
        return lambda: FastoptSampler(request.param, seed=1)


class TestBasic(Methods, samplers.BasicSamplerTestCase):
    pass


class TestRelative(Methods, samplers.RelativeSamplerTestCase):
    pass


class TestSingleOnly(samplers.SingleOnlySamplerTestCase):
    @pytest.fixture(params=["genetic", "greedy", "cma"])
    def sampler(self, request):
        return lambda: FastoptSampler(request.param, seed=1)


class TestSeveral(samplers.MultiObjectiveSamplerTestCase):
    @pytest.fixture(params=["random", "nsga2"])
    def sampler(self, request):
        if request.param not in METHODS:
            pytest.skip("no such engine")
        return lambda: FastoptSampler(request.param, seed=1)


def bowl(trial):
    x = trial.suggest_float("x", -3, 3)
    n = trial.suggest_int("n", 0, 20, step=2)
    c = trial.suggest_categorical("c", ["a", "b", True])
    return (x - 1) ** 2 + abs(n - 6) + (c != "b")


def run(method, n=60, seed=3, objective=bowl, **options):
    study = optuna.create_study(sampler=FastoptSampler(method, seed=seed, **options))
    study.optimize(objective, n_trials=n)
    return study


def test_engines_beat_draws_and_repeat_themselves():
    worst = np.median([run("random", seed=s).best_value for s in range(5)])
    for method in ("genetic", "auto"):
        values = [run(method, seed=s).best_value for s in range(5)]
        assert np.median(values) < worst
    first, second = run("genetic"), run("genetic")
    assert [t.params for t in first.trials] == [t.params for t in second.trials]
    assert isinstance(first.best_params["n"], int)


def test_a_loaded_study_goes_on():
    study = run("genetic", n=30)
    fresh = FastoptSampler("genetic", seed=3)
    again = optuna.create_study(sampler=fresh)
    again.add_trials(study.trials)
    again.optimize(bowl, n_trials=30)
    assert fresh._engine.n_told >= 59
    assert again.best_value <= study.best_value


def test_pruned_and_failed_trials():
    def f(trial):
        x = trial.suggest_float("x", 0, 1)
        trial.report(x, 1)
        if x > 0.8:
            raise optuna.TrialPruned
        if x > 0.6:
            raise ZeroDivisionError
        return x

    study = optuna.create_study(sampler=FastoptSampler("genetic", seed=0))
    study.optimize(f, n_trials=60, catch=(ZeroDivisionError,))
    engine = study.sampler._engine
    states = {t.state.name for t in study.trials}
    assert states == {"COMPLETE", "PRUNED", "FAIL"}
    assert engine.n_told >= 58
    assert engine.fun == min(t.value for t in study.trials[:-1] if t.value is not None)


def test_maximize_and_constraints():
    study = optuna.create_study(
        direction="maximize",
        sampler=FastoptSampler(
            "genetic", seed=0, constraints_func=lambda t: [t.params["x"] - 0.25]
        ),
    )
    study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=80)
    assert study.sampler._engine.feasible
    assert 0.2 < study.sampler._engine.x["x"] <= 0.25
    assert 0.2 < study.best_params["x"] <= 0.25


def test_running_trials_are_not_proposed_again():
    study = optuna.create_study(sampler=FastoptSampler("genetic", seed=0))
    study.optimize(lambda t: float(t.suggest_int("k", 0, 9)), n_trials=3)
    asked = []
    for _ in range(4):
        trial = study.ask()
        asked.append(trial.suggest_int("k", 0, 9))
    assert len(set(asked)) >= 3


def test_threads_copies_and_refusals():
    sampler = FastoptSampler("genetic", seed=0)
    for twin in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert twin.method == "genetic"
    study = optuna.create_study(sampler=sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.optimize(bowl, n_trials=24, n_jobs=3)
    assert len(study.trials) == 24
    with pytest.raises(OptionError):
        FastoptSampler("magic")
    with pytest.raises(OptionError):
        FastoptSampler(n_trials=0)
