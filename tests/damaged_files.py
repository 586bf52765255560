"""Damaged files and states: valid ones with one thing wrong, made from a seed.

A reader may give the content that was written or refuse by name; where the content is protected by
a checksum, anything else is "silent". Forged content has a checksum that fits, so it may be taken,
but what follows may raise nothing foreign and may leave nothing outside its range.
"""

from __future__ import annotations

import copy
import json
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastopt as fo
from fastopt import optim, search
from fastopt._files import load_arrays, save_arrays
from fastopt.compression import Recipe, apply_recipe, inspect_model
from fastopt.compression.search import Candidate, Memory
from fastopt.errors import (
    DTypeError,
    FastoptError,
    FormatError,
    OptionError,
    StorageError,
    UnsupportedError,
)
from fastopt.search.engine import _digest
from fastopt.search.methods import METHODS

Rng = np.random.Generator
ALLOWED = (FormatError, UnsupportedError, StorageError)


class Outcome(NamedTuple):
    kind: str  # "passed", "refused", "foreign", "changed" or "silent"
    note: str = ""


class Reader(NamedTuple):
    """How a valid file is written, and what reading it gives, as something that compares."""

    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    suffix: str = ""
    same: Callable[[Any, Any], bool] = lambda found, right: bool(found == right)
    allowed: tuple[type[Exception], ...] = ALLOWED
    forge: Callable[[bytes, Rng], bytes] | None = None  # damage that keeps the checksum right
    needs: str | None = None  # a package


def any_content(found: Any, right: Any) -> bool:
    """For files without a checksum: what was read need only be readable."""
    return True


# -- files of fastopt's own ----------------------------------------------------------------------


def _optimizer() -> Any:
    opt = optim.Adam({"w": np.linspace(0, 1, 30), "b": np.ones(3, "f4")}, lr=0.1, ema_decay=0.5)
    opt.step({"w": np.ones(30), "b": np.ones(3, "f4")})
    return opt


def _read_optimizer(path: Path) -> Any:
    opt = optim.Adam({"w": np.zeros(30), "b": np.zeros(3, "f4")}, lr=0.1, ema_decay=0.5)
    optim.load(opt, path)
    return repr(opt.state_dict())


def _network() -> Any:
    return fo.models.Network.mlp((6, 8, 3), seed=0)


def _read_network(path: Path) -> Any:
    return fo.models.Network.load(path).predict(np.eye(6, dtype="f4")).tobytes()


def _quantized() -> Any:
    return fo.quantize(np.linspace(-1, 1, 64, dtype="f4").reshape(8, 8), "int4", group_size=4)


def _read_quantized(path: Path) -> Any:
    q = fo.QuantizedArray.from_safetensors(path)
    return q.dequantize().tobytes(), repr(q.config())


def _arrays(path: Path) -> None:
    save_arrays(path, "k", {"a": [1, 2.5]}, {"x": np.arange(40.0)}, npz=True)


def _read_arrays(path: Path) -> Any:
    config, arrays = load_arrays(path, "k")
    return repr(config), {name: a.tobytes() for name, a in arrays.items()}


# -- forging -------------------------------------------------------------------------------------

FORGED: list[Any] = [
    None, True, False, 0, 1, -1, 2, 9, 10**6, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, -0.5,
    1e308, float("nan"), float("inf"), "", "x", "0x1p+0", "nan", "0" * 16, [], {}, [1], ["a"],
    [[1.0]], {"a": 1}, [None, None], "int8", "prune.dense0", "\ud800",
]  # fmt: skip


def forged(value: Any, rng: Rng, depth: int = 0) -> Any:
    """The plain data with one part replaced, left out, doubled or renamed."""
    value = copy.copy(value)
    inside = isinstance(value, (dict, list)) and len(value) > 0
    if not inside or (depth > 0 and rng.random() < 0.3):
        if isinstance(value, np.ndarray) and value.size and rng.random() < 0.6:
            value = value.copy()
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                number = (0, -1, np.nan, np.inf, 1e300, 7)[int(rng.integers(6))]
                value.reshape(-1)[int(rng.integers(value.size))] = np.array(number).astype(
                    value.dtype
                )
            return value
        if isinstance(value, np.ndarray) and rng.random() < 0.7:
            if value.ndim == 0:
                return value.reshape(1)
            with np.errstate(all="ignore"):
                others = (
                    value[:-1],
                    value[:0],
                    value.astype("f4"),
                    value.astype("i4"),
                    value[None],
                )
            return others[int(rng.integers(5))]
        return FORGED[int(rng.integers(len(FORGED)))]
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    place = places[int(rng.integers(len(places)))]
    what = rng.random()
    if what < 0.1:
        del value[place]
    elif what < 0.15 and isinstance(value, list):
        value.insert(place, value[place])
    elif what < 0.15:
        value[f"{place}x"] = value[place]
    else:
        value[place] = forged(value[place], rng, depth + 1)
    return value


# -- journals ------------------------------------------------------------------------------------

SPACE = {"x": fo.Float(-1, 1), "n": fo.Int(1, 9), "c": fo.Choice("a", "b"), "f": fo.Bool()}


def _objective(x: float, n: int, c: str, f: bool) -> float:
    if n == 9:
        raise ValueError("n")
    return x * x + n + (c == "a") - f


def _search(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fo.minimize(
            _objective, SPACE, method="genetic", max_evals=24, on_error="skip", storage=path
        )
    return found.history.tobytes(), repr(found.x)


def _result(path: Path) -> Any:
    return search.load_result(path).history.tolist()


def _begins(found: Any, right: Any) -> bool:
    """A torn last record is cut off, so a journal read back may end early."""
    return repr(found) == repr(right[: len(found)])


def forged_line(data: bytes, rng: Rng) -> bytes:
    """One field of one record replaced, the checksum made right again."""
    lines = data.split(b"\n")[:-1]
    k = int(rng.integers(len(lines)))
    record = json.loads(lines[k][9:])
    body = json.dumps(forged(record, rng)).encode()
    lines[k] = b"%08x %b" % (zlib.crc32(body), body)
    return b"\n".join(lines) + b"\n"


_KEYS = [Recipe({"quantize.dense0": form}).key for form in ("int8", "int4", "float16")]


def _memory(path: Path) -> None:
    memory = Memory(path, "a run")
    for k, key in enumerate(_KEYS):
        memory.put(key, [100.0 - k, 0.01 * k, 0.001, 0.1 / (k + 1), 0.02])
    memory.close()


def _read_memory(path: Path) -> Any:
    memory = Memory(path, "a run")
    try:
        found = [memory.get(key) for key in _KEYS]
    finally:
        memory.close()
    for values in found:
        if values is not None:
            candidate = Candidate(Recipe(), *values)
            assert candidate.cost >= 0
            assert candidate.drop == candidate.drop
    return found


def _known(found: Any, right: Any) -> bool:
    """Recipes that are not known any more are evaluated again."""
    return all(f is None or f == r for f, r in zip(found, right, strict=True))


# -- recipes and ONNX ----------------------------------------------------------------------------


def _recipe(path: Path) -> None:
    choices = {"prune.dense0": 0.25, "quantize.dense1": "int8", "refit.outputs": 0}
    path.write_text(json.dumps({"recipe": choices, "n": 1}))


def _apply(path: Path) -> Any:
    x = np.random.default_rng(0).standard_normal((20, 6)).astype("f4")
    recipe = Recipe.load(str(path))
    return apply_recipe(recipe, _network(), x, max_drop=0.5).verdict


def _onnx(path: Path) -> None:
    from tests import onnx_graphs

    path.write_bytes(onnx_graphs.mlp().SerializeToString())


def _inspect(path: Path) -> Any:
    return inspect_model(str(path))


def _compress(path: Path) -> Any:
    x = np.random.default_rng(0).standard_normal((12, 40)).astype("f4")
    return fo.compress(str(path), x, max_drop=0.5, max_evals=2).verdict


READERS: dict[str, Reader] = {
    "optimizer state": Reader(
        lambda p: optim.save(_optimizer(), p), _read_optimizer, needs="safetensors"
    ),
    "quantised array": Reader(
        lambda p: _quantized().to_safetensors(p), _read_quantized, needs="safetensors"
    ),
    "arrays in .npz": Reader(_arrays, _read_arrays),
    "network .npz": Reader(lambda p: _network().save(p), _read_network, ".npz"),
    "network .safetensors": Reader(
        lambda p: _network().save(p), _read_network, ".safetensors", needs="safetensors"
    ),
    "journal, continued": Reader(_search, _search, forge=forged_line),
    "journal, read": Reader(_search, _result, same=_begins, forge=forged_line),
    "journal of compress": Reader(_memory, _read_memory, same=_known, forge=forged_line),
    "recipe": Reader(
        _recipe,
        _apply,
        ".json",
        any_content,
        (*ALLOWED, OptionError, DTypeError),
        lambda data, rng: json.dumps(forged(json.loads(data), rng)).encode(),
    ),
    "ONNX, inspected": Reader(_onnx, _inspect, ".onnx", any_content, needs="onnx"),
    "ONNX, compressed": Reader(
        _onnx, _compress, ".onnx", any_content, (FastoptError,), needs="onnx"
    ),
}


def mutant(data: bytes, rng: Rng) -> bytes:
    """The file with a bit flipped, a byte or a stretch overwritten, cut, doubled or cut off."""
    bad = bytearray(data)
    kind = rng.random()
    at = int(rng.integers(len(bad)))
    span = min(len(bad) - at, 1 + int(rng.integers(64)))
    if kind < 0.5:
        bad[at] ^= 1 << int(rng.integers(8))
    elif kind < 0.6:
        bad[at] = int(rng.integers(256))
    elif kind < 0.7:
        bad[at : at + span] = rng.bytes(span)
    elif kind < 0.8:
        del bad[at : at + span]
    elif kind < 0.9:
        bad[at:at] = bad[at : at + span]
    else:
        del bad[at:]
    return bytes(bad)


def run_mutants(name: str, seed: int, count: int, folder: Path) -> Iterator[Outcome]:
    """Damaged files of one kind, read: "passed" where the content is the original's to the bit.

    Every second one is forged where that can be done.
    """
    reader = READERS[name]
    path = folder / f"file{reader.suffix}"
    reader.write(path)
    data, right = path.read_bytes(), reader.read(path)
    for k in range(count):
        rng = np.random.default_rng([seed, k])
        forge = reader.forge if k % 2 else None
        path.write_bytes(mutant(data, rng) if forge is None else forge(data, rng))
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                found = reader.read(path)
        except reader.allowed:
            yield Outcome("refused")
        except Exception as stranger:
            yield Outcome("foreign", f"{name} #{k}: {type(stranger).__name__}: {stranger}")
        else:
            fine = forge is not None or reader.same(found, right)
            yield Outcome("passed" if fine else "silent", f"{name} #{k}")


# -- states of engines ---------------------------------------------------------------------------

ENGINES = tuple(m for m in METHODS if m not in ("auto", "subset"))


def _engine(method: str) -> Any:
    names = {"gp": "GP", "tpe": "TPE", "cma": "CMA", "de": "DE", "nsga2": "NSGA2"}
    numeric = {k: SPACE[k] for k in ("x",)} | {"y": fo.Float(-2, 2)}
    kind = getattr(search, names.get(method, method.capitalize()))
    return kind(numeric if method in ("cma", "de", "portfolio") else SPACE, seed=0)


def _go_on(engine: Any, batches: int) -> None:
    for _ in range(batches):
        asked = engine.ask(engine.wants())
        values = engine.space.parse(asked)
        y = np.abs(values).sum(axis=1)
        engine.tell(asked, y if engine.n_objectives == 1 else np.stack([y, -y], axis=1))


def run_states(seed: int, count: int) -> Iterator[Outcome]:
    """Damaged states of engines, loaded; half of them with a digest that fits."""
    states = {}
    for method in ENGINES:
        engine = _engine(method)
        _go_on(engine, 4)
        states[method] = engine.state_dict()
    for k in range(count):
        rng = np.random.default_rng([seed, k])
        method = ENGINES[k % len(ENGINES)]
        state = forged(states[method], rng)
        if rng.random() < 0.5 and isinstance(state, Mapping):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state["digest"] = _digest({k: v for k, v in state.items() if k != "digest"})
        fits = state.get("digest") != states[method]["digest"]
        engine = _engine(method)
        before = repr(engine.state_dict())
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                engine.load_state_dict(state)
                _go_on(engine, 2)
        except MemoryError:
            yield Outcome("refused", "memory")
        except FormatError:
            torn = repr(engine.state_dict()) != before
            yield Outcome("changed" if torn else "refused", f"{method} #{k}")
        except Exception as stranger:
            yield Outcome("foreign", f"{method} #{k}: {type(stranger).__name__}: {stranger}")
        else:
            same = fits or repr(state) == repr(states[method])
            yield Outcome("passed" if same else "silent", f"{method} #{k}")
