"""Row 1: one way to write files, and the checked form of those that hold arrays."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import optim
from fastopt._files import load_arrays, path_of, save_arrays, write_whole
from fastopt.errors import (
    DTypeError,
    FastoptError,
    FormatError,
    MissingFileError,
    OptionError,
    StorageError,
)
from fastopt.models import Network

ROOT = Path(fastopt.__file__).parent


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def written(path, data=b"new"):
    with write_whole(path) as file:
        file.write(data)


# -- writing -----------------------------------------------------------------------------------


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_new_file_has_the_mode_of_the_umask(tmp_path, umask):
    written(tmp_path / "f")
    assert mode(tmp_path / "f") == 0o640


@pytest.mark.parametrize("before", [0o600, 0o664, 0o755])
def test_a_replaced_file_keeps_its_mode(tmp_path, umask, before):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    path.chmod(before)
    written(path)
    assert (mode(path), path.read_bytes()) == (before, b"new")


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_followed(tmp_path, exists):
    (tmp_path / "there").mkdir()
    if exists:
        (tmp_path / "there" / "f").write_bytes(b"old")
    (tmp_path / "link").symlink_to("there/f")
    written(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "f").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_every_writer_goes_the_same_way(tmp_path, umask):
    pytest.importorskip("safetensors")
    x = np.ones((4, 4), "f4")
    net = Network.mlp([4, 3])
    made = {
        "q": fastopt.quantize(x, "int8").to_safetensors,
        "o": lambda p: optim.save(optim.Adam(x.copy()), p),
        "n.npz": net.save,
        "n.safetensors": net.save,
    }
    for name, save in made.items():
        path = tmp_path / name
        save(path)
        assert mode(path) == 0o640, name
        path.chmod(0o604)
        (tmp_path / f"link{name}").symlink_to(name)
        save(tmp_path / f"link{name}")
        assert (tmp_path / f"link{name}").is_symlink(), name
        assert mode(path) == 0o604, name
        with pytest.raises(MissingFileError) as failed:
            save(tmp_path / "no" / name)
        assert isinstance(failed.value, FileNotFoundError)
        assert failed.value.errno == errno.ENOENT
        assert failed.value.filename == str(tmp_path / "no" / name)


def test_no_other_file_replaces_or_makes_temporary_ones():
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        if path.name != "_files.py":
            assert "os.replace" not in text, path
            assert "mkstemp" not in text, path


def test_a_full_disk_is_a_storage_error_and_the_old_file_stays(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys\n"
        "from fastopt._files import write_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "from fastopt.errors import StorageError\n"
        "try:\n"
        "    with write_whole(sys.argv[1]) as f: f.write(bytes(1 << 20))\n"
        "except StorageError as e: print(e.errno, e.filename == sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.stdout.split() == [str(errno.EFBIG), "True"], done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert path.read_bytes() == b"old"
    with pytest.raises(StorageError) as failed:
        written("/dev/full", bytes(1 << 20))
    assert failed.value.errno == errno.ENOSPC
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_block_that_fails_leaves_nothing(tmp_path):
    def fail():
        with write_whole(tmp_path / "f") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    code = (
        "import os, sys\n"
        "from fastopt._files import write_whole\n"
        "with write_whole(sys.argv[1]) as f:\n"
        "    f.write(b'half'); f.flush(); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "f"], check=False)
    (stale,) = tmp_path.iterdir()
    assert stale.name.endswith(".partial")
    with write_whole(tmp_path / "f") as first:
        (own,) = tmp_path.iterdir()
        assert own != stale
        written(tmp_path / "f", b"second")  # by another thread or process meanwhile
        assert own.exists()
        first.write(b"first")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"first"


@pytest.mark.parametrize(("path", "kind"), [
    (5, DTypeError), (None, DTypeError), ("", OptionError), ("a\0b", OptionError),
])  # fmt: skip
def test_what_is_no_path_is_refused(path, kind):
    for call in (path_of, written, lambda p: load_arrays(p, "k")):
        with pytest.raises(kind, match="path"):
            call(path)


def test_folders_and_long_names(tmp_path):
    with pytest.raises(StorageError) as failed:
        written(tmp_path)
    assert failed.value.errno == errno.EISDIR
    written(tmp_path / ("x" * 255))
    with pytest.raises(StorageError) as failed:
        written(tmp_path / ("x" * 256))
    assert failed.value.errno == errno.ENAMETOOLONG
    assert len(list(tmp_path.iterdir())) == 1


# -- files that hold arrays ----------------------------------------------------------------------

ARRAYS = {
    "a": np.arange(6, dtype="f4").reshape(2, 3),
    "b": np.array(7, "u2"),
    "c.d": np.zeros((0, 3), "i8"),
    "flags": np.array([True, False]),
}
CONFIG = {"name": "x", "sizes": [1, 2.5, None], "inner": {"10": 1, "9": float("inf")}}


@pytest.fixture(params=[False, True], ids=["safetensors", "npz"])
def saved(request, tmp_path):
    if not request.param:
        pytest.importorskip("safetensors")
    path = tmp_path / "f"
    save_arrays(path, "k", CONFIG, ARRAYS, npz=request.param)
    return path


def test_arrays_come_back(saved):
    config, arrays = load_arrays(saved, "k")
    assert config == CONFIG
    assert set(arrays) == set(ARRAYS)
    for name, a in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (a.dtype, a.shape)
        assert (arrays[name] == a).all()


def test_a_check_sees_names_and_shapes_before_anything_is_read(saved):
    def check(config, declared):
        assert config == CONFIG
        assert dict(declared) == {
            "a": ("f4", (2, 3)), "b": ("u2", ()), "c.d": ("i8", (0, 3)), "flags": ("b1", (2,))
        }  # fmt: skip
        raise FormatError("not these")

    with pytest.raises(FormatError, match="not these"):
        load_arrays(saved, "k", check)


def test_another_purpose_and_no_file(saved, tmp_path):
    with pytest.raises(FormatError, match="purpose"):
        load_arrays(saved, "other")
    with pytest.raises(MissingFileError):
        load_arrays(tmp_path / "no", "k")
    with pytest.raises(StorageError):
        load_arrays(tmp_path, "k")


def test_damage_is_refused_or_harmless(saved, rng):
    good = saved.read_bytes()
    for k in range(400):
        bad = bytearray(good)
        at = int(rng.integers(len(bad)))
        bad[at] ^= 1 << int(rng.integers(8))
        saved.write_bytes(bad[: int(rng.integers(len(bad)))] if k % 8 == 0 else bad)
        try:
            config, arrays = load_arrays(saved, "k")
        except FormatError:
            continue
        assert config == CONFIG  # a time stamp of the zip
        assert all((arrays[name] == a).all() for name, a in ARRAYS.items())


def test_a_bomb_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "f"
    save_arrays(path, "k", CONFIG, ARRAYS, npz=True)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as z, z.open("x.npy", "w") as f:
        np.lib.format.write_array_header_1_0(
            f, {"descr": "|u1", "fortran_order": False, "shape": (1 << 24,)}
        )
        f.write(bytes(1 << 24))
    with pytest.raises(FormatError, match="compressed"):
        load_arrays(path, "k")


@pytest.mark.parametrize("npz", [False, True])
def test_readers_meet_missing_and_foreign_files_with_our_errors(tmp_path, npz):
    pytest.importorskip("safetensors")
    opt = optim.Adam(np.ones(3))
    readers = (fastopt.QuantizedArray.from_safetensors, lambda p: optim.load(opt, p))
    for read in readers:
        with pytest.raises(MissingFileError):
            read(tmp_path / "no")
        save_arrays(tmp_path / "f", "k", CONFIG, ARRAYS, npz=npz)
        with pytest.raises(FormatError):
            read(tmp_path / "f")
        (tmp_path / "f").write_bytes(b"")
        with pytest.raises(FormatError):
            read(tmp_path / "f")


def test_a_flipped_bit_of_an_optimizer_is_seen(tmp_path):
    pytest.importorskip("safetensors")
    opt = optim.Adam(np.ones(3))
    opt.step(np.ones(3))
    path = tmp_path / "s"
    optim.save(opt, path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(data)
    other = optim.Adam(np.ones(3))
    with pytest.raises(FormatError, match="checksum"):
        optim.load(other, path)
    assert other.state_dict()["state"] == {}


def test_forged_states_are_format_errors_and_change_nothing(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "s"
    for rest in (
        None, [], {"state": 5, "param_groups": []}, {"state": {"x": {}}, "param_groups": []},
        {"state": {}, "param_groups": [{"params": [0], "lr": "a"}]},
        {"state": {}, "param_groups": [{"params": [0], "lr": -1.0}]},
        {"state": {"0": {"step": 1, "exp_avg": {"$tensor": "no"}}},
         "param_groups": [{"params": [0]}]},
    ):  # fmt: skip
        save_arrays(path, "fastopt.optim/2", {"optimizer": "Adam", "rest": rest}, {})
        opt = optim.Adam(np.ones(3))
        with pytest.raises(FormatError):
            optim.load(opt, path)
        assert opt.param_groups[0]["lr"] == 1e-3
    huge = {"x": np.zeros(1 << 18)}
    save_arrays(path, "fastopt.optim/2", {"optimizer": "Adam", "rest": {}}, huge)
    with pytest.raises(FormatError, match="bytes of state"):
        optim.load(optim.Adam(np.ones(3)), path)


def test_forged_quantised_arrays_are_format_errors(tmp_path):
    pytest.importorskip("safetensors")
    q = fastopt.quantize(np.ones((4, 4), "f4"), "int8", axis=0)
    parts = {k: getattr(q, k) for k in ("codes", "scale", "zero_point")}
    path = tmp_path / "q"
    for change in (
        {"dtype": "int99"}, {"dtype": 5}, {"shape": [4]}, {"shape": "44"}, {"shape": [2, 2]},
        {"axis": 7}, {"axis": "x"}, {"group_size": -3}, {"symmetric": "yes"}, {"shape": None},
        {"shape": [4, 4, 2**62]}, {"dtype": "uint8"},
    ):  # fmt: skip
        save_arrays(path, "fastopt.quantized", {**q.config(), **change}, parts)
        with pytest.raises(FormatError):
            fastopt.QuantizedArray.from_safetensors(path)
    for change in ({"scale": q.scale[:2]}, {"codes": q.codes[:2]}, {"more": q.codes}):
        save_arrays(path, "fastopt.quantized", q.config(), {**parts, **change})
        with pytest.raises(FastoptError):
            fastopt.QuantizedArray.from_safetensors(path)
