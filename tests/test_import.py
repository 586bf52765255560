"""What importing and installing fastopt means: light, typed, the right level or ImportError."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import fastopt
from fastopt._kernels import levels


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=120,
    )


def test_import_brings_numpy_and_nothing_else_heavy() -> None:
    code = (
        "import numpy, sys; before = set(sys.modules); import fastopt; "
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    brought = set(ast.literal_eval(python(code).stdout)) - sys.stdlib_module_names
    assert {n for n in brought if not n.startswith("_cython")} <= {"fastopt", "cython_runtime"}


def test_every_public_name_loads_and_needs_numpy_only() -> None:
    code = (
        "import sys, fastopt\n"
        "for name in fastopt.__all__: getattr(fastopt, name)\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'onnx', 'pandas', 'safetensors', 'matplotlib'}\n"
        "print(sorted(heavy & {m.partition('.')[0] for m in sys.modules}))"
    )
    result = python(code)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("level", levels())
def test_a_level_can_be_forced(level: str) -> None:
    code = "import fastopt._kernels as k; print(k.isa, k.update.__name__)"
    result = python(code, FASTOPT_ISA=level)
    assert result.stdout.split() == [level, f"fastopt._kernels.{level}.update"], result.stderr


def test_a_level_the_cpu_lacks_is_an_import_error_not_a_crash() -> None:
    lacking = next(name for name in ("plain", "v4", "v3", "v2") if name not in levels())
    for code in ("import fastopt", f"import fastopt._kernels.{lacking}.update"):
        result = python(code, FASTOPT_ISA=lacking if code == "import fastopt" else "")
        assert result.returncode == 1
        assert "ImportError" in result.stderr
        assert lacking in result.stderr


def test_an_unknown_level_is_an_import_error() -> None:
    result = python("import fastopt", FASTOPT_ISA="avx9")
    assert result.returncode == 1
    assert "FASTOPT_ISA" in result.stderr


def test_the_package_is_typed_and_every_kernel_has_a_stub() -> None:
    root = Path(fastopt.__file__).parent
    assert (root / "py.typed").exists()
    built = {p.name.partition(".")[0] for p in (root / "_kernels" / levels()[0]).glob("*.so")}
    stubs = {p.stem for p in (root / "_kernels").glob("*/*.pyi")}
    assert built
    assert built <= stubs


def test_every_level_has_every_kernel() -> None:
    root = Path(fastopt.__file__).parent / "_kernels"
    lowest = {p.name.partition(".")[0] for p in (root / levels()[-1]).glob("*.so")}
    assert lowest
    for level in levels():
        assert {p.name.partition(".")[0] for p in (root / level).glob("*.so")} == lowest
        for name in lowest:
            import_module(f"fastopt._kernels.{level}.{name}")


def test_show_config_names_level_threads_and_versions(capsys: pytest.CaptureFixture[str]) -> None:
    fastopt.show_config()
    shown = capsys.readouterr().out
    for word in ("fastopt", "level", "threads", "numpy", "python"):
        assert word in shown


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        fastopt.nonsense  # noqa: B018
