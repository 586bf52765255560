"""Named arrays with a spec: what is coupled is cut together, what the spec forgets is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fastopt
from fastopt.errors import ArrayError, DTypeError, FormatError, OptionError, UnsupportedError
from fastopt.models import ArrayModel

SPEC = {
    "layers": ["blocks.*.up.weight", "blocks.*.down.weight", "head.weight"],
    "groups": [
        {
            "name": "ffn",
            "makes": ["blocks.*.up.weight:0"],
            "with": ["blocks.*.up.bias:0"],
            "reads": ["blocks.*.down.weight:1"],
        }
    ],
}


def arrays(d: int = 8, hidden: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def f(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    found = {"head.weight": f(3, d), "head.bias": f(3)}
    for k in range(2):
        found[f"blocks.{k}.up.weight"], found[f"blocks.{k}.up.bias"] = f(hidden, d), f(hidden)
        found[f"blocks.{k}.down.weight"], found[f"blocks.{k}.down.bias"] = f(d, hidden), f(d)
    return found


def forward(a, feed, tap):
    x = feed["x"]
    for k in range(2):
        stem = f"blocks.{k}"
        tap(f"{stem}.up.weight", x)
        h = np.maximum(x @ a[f"{stem}.up.weight"].T + a[f"{stem}.up.bias"], 0)
        tap(f"{stem}.down.weight", h)
        x = x + h @ a[f"{stem}.down.weight"].T + a[f"{stem}.down.bias"]
    tap("head.weight", x)
    return x @ a["head.weight"].T + a["head.bias"]


X = np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32)


def model(**changes) -> ArrayModel:
    return ArrayModel(arrays(), {**SPEC, **changes}, forward, {"x": X[:2]})


def test_families_of_units_are_found() -> None:
    found = model().groups
    assert list(found) == ["ffn.0", "ffn.1"]
    group = found["ffn.1"]
    assert group.n_units == 16
    assert [m.tensor for m in (*group.producers, *group.others, *group.consumers)] == [
        "blocks.1.up.weight",
        "blocks.1.up.bias",
        "blocks.1.down.weight",
    ]


def test_a_sliced_model_is_the_masked_one() -> None:
    whole = model()
    for name, group in whole.groups.items():
        masked, sliced = whole.copy(), whole.copy()
        kept = np.arange(0, 16, 3)
        (reader,) = group.consumers
        weight = masked.layers[reader.tensor].weight.copy()
        weight[:, np.setdiff1d(np.arange(16), kept)] = 0
        masked.set_weight(reader.tensor, weight)
        sliced.keep_units(name, kept)
        (a, _), *_ = masked.run({"x": X})
        (b, _), *_ = sliced.run({"x": X})
        np.testing.assert_allclose(b["output"], a["output"], rtol=1e-4, atol=1e-5)
        assert sliced.nbytes < whole.nbytes
    assert whole.arrays["blocks.0.up.weight"].shape == (16, 8)


def test_units_of_several_rows_and_convolutions() -> None:
    rng = np.random.default_rng(0)
    a = {
        "q.weight": rng.standard_normal((12, 5)),
        "o.weight": rng.standard_normal((5, 12)),
        "c1.weight": rng.standard_normal((4, 3, 3, 3)),
        "c2.weight": rng.standard_normal((6, 4, 3, 3)),
        "bn.weight": rng.standard_normal(4),
    }
    spec = {
        "layers": ["*.weight"],
        "groups": [
            {"name": "heads", "makes": ["q.weight:0:4"], "reads": ["o.weight:1:4"]},
            {
                "name": "channels",
                "makes": ["c1.weight:0"],
                "with": ["bn.weight:0"],
                "reads": ["c2.weight:1"],
            },
        ],
    }
    spec["layers"] = ["q.weight", "o.weight", "c1.weight", "c2.weight"]
    m = ArrayModel(a, spec)
    m.keep_units("heads", np.array([0, 2]))
    m.keep_units("channels", np.array([1, 3]))
    np.testing.assert_array_equal(m.arrays["q.weight"], a["q.weight"][[0, 1, 2, 3, 8, 9, 10, 11]])
    np.testing.assert_array_equal(m.arrays["c2.weight"], a["c2.weight"][:, [1, 3]])
    np.testing.assert_array_equal(m.arrays["bn.weight"], a["bn.weight"][[1, 3]])
    assert m.groups["channels"].consumers[0].index.shape == (2, 9)
    assert a["q.weight"].shape == (12, 5)


def test_compress_prunes_and_refits_through_the_protocol() -> None:
    whole = model()
    weight = whole.arrays["blocks.0.up.weight"].copy()
    weight[8:] = weight[:8]  # half of the units are copies of the others
    whole.arrays["blocks.0.up.weight"] = weight
    bias = whole.arrays["blocks.0.up.bias"].copy()
    bias[8:] = bias[:8]
    whole.arrays["blocks.0.up.bias"] = bias
    found = fastopt.compress(whole, {"x": X}, max_drop=0.02, passes=("prune",), max_evals=20)
    assert found.changed
    assert found.model.arrays["blocks.0.up.weight"].shape[0] <= 8
    (a, _), *_ = whole.run({"x": X})
    (b, _), *_ = found.model.run({"x": X})
    spread = ((a["output"] - a["output"].mean(0)) ** 2).sum()
    assert ((a["output"] - b["output"]) ** 2).sum() < 0.04 * spread


@pytest.mark.parametrize(
    ("changes", "kind", "word"),
    [
        (
            {"groups": [{k: v for k, v in SPEC["groups"][0].items() if k != "with"}]},
            OptionError,
            "blocks.0.up.bias:0 has 16 entries",
        ),
        ({"layers": ["nothing.*"]}, OptionError, "nothing"),
        (
            {"groups": [{**SPEC["groups"][0], "reads": ["head.weight:1"]}]},
            OptionError,
            "nothing that",
        ),
        (
            {"groups": [{**SPEC["groups"][0], "reads": ["blocks.*.down.weight:0"]}]},
            ArrayError,
            "differ in number",
        ),
        (
            {"groups": [*SPEC["groups"], {**SPEC["groups"][0], "name": "twice"}]},
            OptionError,
            "is in ffn",
        ),
        (
            {"groups": [{"name": "x", "makes": ["blocks.*.up.weight"]}]},
            OptionError,
            "pattern:axis",
        ),
        (
            {"groups": [{"name": "x", "makes": ["blocks.*.up.weight:0:5"]}]},
            ArrayError,
            "units of 5",
        ),
        ({"groups": [{"makes": []}]}, OptionError, "needs a name"),
        ({"more": []}, OptionError, "spec"),
    ],
)
def test_an_unknown_coupling_is_refused_by_name(changes, kind, word) -> None:
    with pytest.raises(kind, match=word):
        model(**changes)


def test_independent_arrays_are_named_as_such() -> None:
    bare = {k: v for k, v in SPEC["groups"][0].items() if k != "with"}
    m = model(groups=[bare], independent=["blocks.*.up.bias:0"])
    assert list(m.groups) == ["ffn.0", "ffn.1"]


def test_files_round_trip(tmp_path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(arrays(), tmp_path / "m.safetensors")
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    m = ArrayModel(tmp_path / "m.safetensors", tmp_path / "spec.json")
    m.keep_units("ffn.0", np.arange(4))
    m.store("head.weight", "float16")
    m.save(tmp_path / "small.safetensors")
    again = safetensors.load_file(tmp_path / "small.safetensors")
    assert again["blocks.0.up.weight"].shape == (4, 8)
    assert again["head.weight"].dtype == np.float16
    assert m.nbytes == sum(a.nbytes for a in again.values())
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="safetensors"):
        ArrayModel(tmp_path / "bad.safetensors", SPEC)


def test_wrong_input_changes_nothing() -> None:
    m = model()
    before = {k: a.copy() for k, a in m.arrays.items()}
    cut = {"blocks.0.down.weight": (np.ones((8, 3)), None)}
    halves = np.ones((3, 1)), np.ones((1, 8))
    for bad, kind, word in [
        (lambda: m.keep_units("ffn", np.arange(2)), OptionError, "group"),
        (lambda: m.keep_units("ffn.0", np.array([1, 1])), ArrayError, "index"),
        (lambda: m.keep_units("ffn.0", np.array([16])), ArrayError, "index"),
        (
            lambda: m.keep_units("ffn.0", np.arange(2), cut),
            ArrayError,
            "weight",
        ),
        (lambda: m.set_weight("head.weight", np.ones((2, 8))), ArrayError, "weight"),
        (lambda: m.split_layer("head.weight", *halves), UnsupportedError, "two"),
        (lambda: m.store("head.weight", "int8"), OptionError, "form"),
        (lambda: ArrayModel([1, 2], SPEC), DTypeError, "arrays"),
        (lambda: next(ArrayModel(arrays(), SPEC).run({"x": X})), UnsupportedError, "forward"),
    ]:
        with pytest.raises(kind, match=word):
            bad()
    for k, a in m.arrays.items():
        np.testing.assert_array_equal(a, before[k])
