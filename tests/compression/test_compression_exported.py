"""Two dozen models of other makers, trained on digits and exported: each one is compressed and
keeps its budget on rows that nothing has seen; cutting its units is what masking them is."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
datasets = pytest.importorskip("sklearn.datasets")

nn = torch.nn
F = nn.functional
N_TRAIN, N_CALIB = 1000, 400  # of 1797; the rest is unseen


class Gated(nn.Module):
    """A SwiGLU feed-forward block between two projections."""

    def __init__(self, n: int = 64) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, n), nn.Linear(64, n), nn.Linear(n, 48)
        self.out = nn.Linear(48, 10)

    def forward(self, x: Any) -> Any:
        return self.out(F.relu(self.c(F.silu(self.a(x)) * self.b(x))))


class Residual(nn.Module):
    """Two convolutions with batch-norm around which the input is added."""

    def __init__(self, n: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, n, 3, padding=1)
        self.a, self.b = nn.Conv2d(n, 2 * n, 3, padding=1), nn.Conv2d(2 * n, n, 3, padding=1)
        self.an, self.bn = nn.BatchNorm2d(2 * n), nn.BatchNorm2d(n)
        self.out = nn.Linear(n, 10)

    def forward(self, x: Any) -> Any:
        h = F.relu(self.first(x))
        h = F.relu(h + self.bn(self.b(F.relu(self.an(self.a(h))))))
        return self.out(F.adaptive_avg_pool2d(h, 1).flatten(1))


class Inception(nn.Module):
    """Two branches that are joined along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(1, 12, 5, padding=2)
        self.c, self.out = nn.Conv2d(24, 16, 1), nn.Linear(16 * 16, 10)

    def forward(self, x: Any) -> Any:
        h = torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1)
        return self.out(F.max_pool2d(F.relu(self.c(h)), 2).flatten(1))


class Encoder(nn.Module):
    """One transformer block over the rows of the image, normalised before or after."""

    def __init__(self, first: bool, n: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.first, self.heads = first, heads
        self.embed, self.place = nn.Linear(8, n), nn.Parameter(torch.randn(1, 8, n) / 10)
        self.q, self.k, self.v, self.o = (nn.Linear(n, n) for _ in range(4))
        self.up, self.down = nn.Linear(n, 4 * n), nn.Linear(4 * n, n)
        self.n1, self.n2, self.out = nn.LayerNorm(n), nn.LayerNorm(n), nn.Linear(n, 10)

    def attend(self, x: Any) -> Any:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))

    def feed(self, x: Any) -> Any:
        return self.down(F.gelu(self.up(x)))

    def forward(self, x: Any) -> Any:
        h = self.embed(x) + self.place
        if self.first:
            h = h + self.attend(self.n1(h))
            h = h + self.feed(self.n2(h))
        else:
            h = self.n1(h + self.attend(h))
            h = self.n2(h + self.feed(h))
        return self.out(h.mean(1))


class Mixer(nn.Module):
    """Tokens and channels mixed in turn."""

    def __init__(self, n: int = 24) -> None:
        super().__init__()
        self.embed, self.norm, self.out = nn.Linear(8, n), nn.LayerNorm(n), nn.Linear(n, 10)
        self.t1, self.t2, self.c1, self.c2 = (
            nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(n, 64), nn.Linear(64, n),
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        h = self.embed(x)
        h = h + self.t2(F.gelu(self.t1(self.norm(h).transpose(1, 2)))).transpose(1, 2)
        return self.out((h + self.c2(F.gelu(self.c1(h)))).mean(1))


class Recurrent(nn.Module):
    """A recurrent layer read at its last step."""

    def __init__(self, kind: Any, both: bool) -> None:
        super().__init__()
        self.rnn = kind(8, 32, batch_first=True, bidirectional=both)
        self.out = nn.Linear(64 if both else 32, 10)

    def forward(self, x: Any) -> Any:
        return self.out(self.rnn(x)[0].mean(1))


class Words(nn.Module):
    """Embedded pixel values, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.place = nn.Embedding(17, 32), nn.Embedding(64, 32)
        self.a, self.out = nn.Linear(32, 64), nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        h = self.words(x) * self.place.weight
        return self.out(F.relu(self.a(h.mean(1))))


def convolutions(*middle: Any, n: int = 16, size: int = 4) -> Any:
    return nn.Sequential(
        nn.Conv2d(1, n, 3, padding=1), nn.ReLU(), *middle, nn.MaxPool2d(8 // size),
        nn.Flatten(), nn.Linear(n * size * size, 10),
    )  # fmt: skip


def mlp(activation: Any) -> Any:
    return nn.Sequential(
        nn.Linear(64, 96), activation, nn.Linear(96, 48), activation, nn.Linear(48, 10)
    )


class Transposed(nn.Module):
    """Down by a stride and up again by a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 16, 3, 2, 1), nn.ConvTranspose2d(16, 12, 4, 2, 1)
        self.out = nn.Linear(12 * 64, 10)

    def forward(self, x: Any) -> Any:
        return self.out(F.relu(self.up(F.relu(self.down(x)))).flatten(1))


def mobile() -> Any:
    return convolutions(
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16),
        nn.Hardswish(), nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish(),
    )  # fmt: skip


FLAT, IMAGE, ROWS, WORDS = "flat", "image", "rows", "words"
PAIRS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "mlp": (lambda: mlp(nn.ReLU()), FLAT, "script"),
    "mlp, dynamo": (lambda: mlp(nn.GELU()), FLAT, "dynamo"),
    "mlp, external data": (lambda: mlp(nn.Tanh()), FLAT, "external"),
    "gated": (Gated, FLAT, "script"),
    "gated, dynamo": (Gated, FLAT, "dynamo"),
    "plain cnn": (
        lambda: convolutions(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        IMAGE, "script",
    ),
    "residual cnn": (Residual, IMAGE, "script"),
    "residual cnn, dynamo": (Residual, IMAGE, "dynamo"),
    "depthwise cnn": (mobile, IMAGE, "script"),
    "depthwise cnn, dynamo": (mobile, IMAGE, "dynamo"),
    "grouped cnn": (
        lambda: convolutions(nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.ReLU()),
        IMAGE, "script",
    ),
    "transposed cnn": (Transposed, IMAGE, "script"),
    "inception": (Inception, IMAGE, "script"),
    "encoder": (lambda: Encoder(first=True), ROWS, "script"),
    "encoder, dynamo": (lambda: Encoder(first=True), ROWS, "dynamo"),
    "encoder, normalised after": (lambda: Encoder(first=False), ROWS, "script"),
    "mixer": (Mixer, ROWS, "script"),
    "gru": (lambda: Recurrent(nn.GRU, both=False), ROWS, "script"),
    "lstm": (lambda: Recurrent(nn.LSTM, both=True), ROWS, "script"),
    "embedding": (Words, WORDS, "script"),
}  # fmt: skip
SCIKIT = ["MLPClassifier", "Pipeline", "RandomForestClassifier", "GradientBoostingClassifier"]


@pytest.fixture(scope="module")
def digits() -> tuple[dict[str, np.ndarray], np.ndarray]:
    x, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype(np.float32), y[order]
    flat = x / np.float32(16)
    return {
        FLAT: flat, IMAGE: flat.reshape(-1, 1, 8, 8), ROWS: flat.reshape(-1, 8, 8),
        WORDS: x.astype(np.int64),
    }, y  # fmt: skip


def trained(made: Any, x: np.ndarray, y: np.ndarray) -> Any:
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    opt = torch.optim.Adam(made.parameters(), lr=3e-3)
    for epoch in range(12):
        for index in torch.randperm(N_TRAIN, generator=torch.Generator().manual_seed(epoch)).split(
            50
        ):
            opt.zero_grad()
            F.cross_entropy(made(inputs[index]), labels[index]).backward()
            opt.step()
    return made.eval()


def exported(made: Any, x: np.ndarray, how: str, folder: Path) -> Any:
    """The path of the model's file, or its proto."""
    sample = (torch.from_numpy(x[:2]),)
    if how == "dynamo":
        pytest.importorskip("onnxscript")
        program = torch.onnx.export(
            made, sample, dynamo=True, verbose=False, input_names=["x"],
            dynamic_shapes=({0: torch.export.Dim("n", min=2, max=4096)},),
        )  # fmt: skip
        return program.model_proto
    target: Any = io.BytesIO()
    torch.onnx.export(
        made, sample, target, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}}
    )
    proto = onnx.load_from_string(target.getvalue())
    if how != "external":
        return proto
    onnx.save(
        proto, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    return folder / "m.onnx"


def checked(
    model: Any, x: np.ndarray, folder: Path, axis: int | None = -1, share: float = 0.6
) -> None:
    """Compress with the budget of 1 %, and look at rows that nothing has seen."""
    calib, unseen = x[N_TRAIN : N_TRAIN + N_CALIB], x[N_TRAIN + N_CALIB :]
    opened, _ = fastopt.compression.adapters.open_model(model)
    (name,) = (i.name for i in opened.inputs)
    _cut_is_masked(opened, {name: calib[:16]})
    found = fastopt.compress(model, {name: calib}, classes_axis=axis, seed=0)
    assert found.changed
    assert found.after.nbytes < share * found.before.nbytes
    found.save(folder / "small.onnx")
    original = model if isinstance(model, Path) else _saved(model, folder / "large.onnx")
    seen = fastopt.compression.compare_models(
        original, folder / "small.onnx", {name: unseen}, classes_axis=axis
    )
    # 1 % of 397 rows, and one row: what is accepted is an estimate from 400 others
    assert seen["b"]["metric"] >= 0.99 - 1 / len(unseen), seen


def _saved(proto: Any, path: Path) -> Path:
    onnx.save(proto, path)
    return path


def _cut_is_masked(model: Any, data: dict[str, np.ndarray]) -> None:
    """Keeping half the units of a group gives what zeros in their consumers give."""
    for name, group in model.groups.items():
        if group.frozen is not None or group.n_units < 2 or not group.consumers:
            continue
        index = np.arange(0, group.n_units, 2)
        gone = np.setdiff1d(np.arange(group.n_units), index)
        cut = model.copy()
        cut.keep_units(name, index)
        masked = {}
        for member in group.consumers:
            weight = masked.get(member.tensor, model.layers[member.tensor].weight).copy()
            weight[:, member.index[gone].reshape(-1)] = 0
            masked[member.tensor] = weight
        ((small, _),) = cut.run(data, batch_size=64)
        ((dense, _),) = model.run(data, batch_size=64, weights=masked)
        for key, a in dense.items():
            scale = max(1.0, float(np.abs(a).max()))
            np.testing.assert_allclose(small[key], a, atol=2e-5 * scale, err_msg=name)


@pytest.mark.parametrize("name", PAIRS)
def test_a_torch_model(name: str, digits, tmp_path: Path) -> None:
    make, kind, how = PAIRS[name]
    inputs, y = digits
    torch.manual_seed(0)
    made = trained(make(), inputs[kind], y)
    checked(exported(made, inputs[kind], how, tmp_path), inputs[kind], tmp_path)


@pytest.mark.parametrize("name", SCIKIT)
def test_a_scikit_learn_model(name: str, digits, tmp_path: Path) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inputs, y = digits
    x = inputs[FLAT]
    makers = {
        "MLPClassifier": lambda: MLPClassifier((64, 32), max_iter=30, random_state=0),
        "Pipeline": lambda: make_pipeline(
            StandardScaler(), MLPRegressor(hidden_layer_sizes=(48,), max_iter=60, random_state=0)
        ),
        "RandomForestClassifier": lambda: RandomForestClassifier(40, random_state=0),
        "GradientBoostingClassifier": lambda: GradientBoostingClassifier(
            n_estimators=15, random_state=0
        ),
    }
    fitted = makers[name]().fit(x[:N_TRAIN], y[:N_TRAIN])
    plain = {"zipmap": False} if hasattr(fitted, "predict_proba") else {}
    proto = skl2onnx.to_onnx(fitted, x[:1], options=plain, target_opset=17)
    axis, trees = None if name == "Pipeline" else -1, name.endswith("gClassifier")
    checked(proto, x, tmp_path, axis, 1.0 if trees or "Forest" in name else 0.6)
