"""Row 1: the files that fastopt writes and reads.

One way to write (:func:`write_whole`): all of a file or nothing. One form for files of ours that
hold arrays (:func:`save_arrays`, :func:`load_arrays`): safetensors or .npz, with a checksum. What
the system refuses is a StorageError with its ``errno``; a file that is missing is also a
FileNotFoundError.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, TypeAlias

import numpy as np

from fastopt._arrays import Array
from fastopt._optional import package
from fastopt.errors import (
    DTypeError,
    FormatError,
    MissingFileError,
    OptionError,
    StorageError,
)

__all__ = ["load_arrays", "path_of", "save_arrays", "storage_errors", "write_whole"]

# Name -> (dtype such as "f4", shape) of the arrays in a file, before they are read.
Declared: TypeAlias = "Mapping[str, tuple[str, tuple[int, ...]]]"
# The JSON, what is declared, and a function that reads one array.
_Opened: TypeAlias = "tuple[dict[str, Any], Declared, Callable[[str], Array]]"

_TENSOR_DTYPES = {"F16": "f2", "F32": "f4", "F64": "f8", "BOOL": "b1"}
_TENSOR_DTYPES |= {
    f"{k}{8 * n}": f"{c}{n}" for k, c in (("I", "i"), ("U", "u")) for n in (1, 2, 4, 8)
}

# Bytes of the JSON before the arrays that are read at most; safetensors itself allows 100 MB.
_HEADER_LIMIT = 16 << 20


def path_of(path: Any, name: str = "path") -> str:
    """``path`` as a str, or a refusal that names the argument."""
    try:
        found: str = os.fsdecode(os.fspath(path))
    except TypeError:
        raise DTypeError(f"{name}: expected a path, got {type(path).__name__}") from None
    if not found or "\0" in found:
        raise OptionError(f"{name}: expected a path, got {found!r}")
    return found


@contextlib.contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """An OSError of the block becomes a StorageError with its errno and ``path``."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        kind = MissingFileError if error.errno == errno.ENOENT else StorageError
        reason = error.strerror or str(error)
        raise kind(error.errno or errno.EIO, reason, path) from error


@contextlib.contextmanager
def write_whole(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Binary file handle whose content appears at ``path`` only when the block ends well.

    A temporary file in the same folder, fsync, rename, fsync of the folder: a crash leaves the old
    file or the new one, never half of one. The new file has the mode of the one it replaces, else
    that of the umask; a link is followed; devices and pipes are written as they are. Temporary
    files that a killed process left of this file are removed.

    Raises
    ------
    StorageError
        The system refuses (no space, no permission, a folder); MissingFileError where the folder
        is missing. Nothing has changed then.
    """
    shown = path_of(path)
    with storage_errors(shown):
        target = os.path.realpath(shown)
        try:
            before: os.stat_result | None = os.stat(target)
        except FileNotFoundError:
            before = None
        if before is not None and stat.S_ISDIR(before.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if before is not None and not stat.S_ISREG(before.st_mode):
            with open(target, "wb") as device:
                yield device
            return
        if before is not None and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        folder, name = os.path.split(target)
        stem = f".{name[:64]}."
        _remove_stale(folder, stem)
        temporary, file = _create(folder, stem)
        try:
            with file:
                yield file
                file.flush()
                if before is not None:
                    with contextlib.suppress(PermissionError):
                        os.fchown(file.fileno(), before.st_uid, before.st_gid)
                    os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
                os.fsync(file.fileno())
                os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(folder)


def _create(folder: str, stem: str) -> tuple[str, IO[bytes]]:
    """A new file there, locked while it is open so that nobody takes it for a stale one."""
    while True:
        temporary = os.path.join(folder, f"{stem}{secrets.token_hex(8)}.partial")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        if _locked(handle) and os.path.exists(temporary):
            return temporary, os.fdopen(handle, "wb")
        os.close(handle)  # another process removed it before it was locked
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _remove_stale(folder: str, stem: str) -> None:
    """Temporary files of ``stem`` that no process holds open any more."""
    wanted = re.compile(re.escape(stem) + r"[0-9a-f]{16}\.partial\Z")
    for name in filter(wanted.match, os.listdir(folder)):
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0))
            try:
                if _locked(handle):
                    os.unlink(path)
            finally:
                os.close(handle)


def _locked(handle: int) -> bool:
    """Whether the file could be locked; the lock goes with the process, however that ends."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # a file system without locks has no stale files removed
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _sync_folder(folder: str) -> None:
    """Make the rename last through a power cut, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def save_arrays(
    path: str | os.PathLike[str],
    key: str,
    config: Mapping[str, Any],
    arrays: Mapping[str, Array],
    *,
    npz: bool = False,
) -> None:
    """Write ``arrays``, and ``config`` as JSON under ``key``, to a safetensors or .npz file.

    The JSON also holds the SHA-256 of both, which :func:`load_arrays` checks.
    """
    store = None if npz else package("safetensors.numpy", "this file", "fastopt[safetensors]")
    kept = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in arrays.items()}
    plain = json.loads(json.dumps(config))
    note = json.dumps({**plain, "sha256": _checksum(plain, kept)})
    if store is not None:
        data = store.save(kept, metadata={key: note})
        with write_whole(path) as file:
            file.write(data)
        return
    with write_whole(path) as file:
        np.savez(file, **{**kept, key: np.frombuffer(note.encode(), np.uint8)})


def load_arrays(
    path: str | os.PathLike[str], key: str, check: Callable[[Any, Declared], object] | None = None
) -> tuple[dict[str, Any], dict[str, Array]]:
    """``config`` and ``arrays`` of what :func:`save_arrays` wrote, every bit of them checked.

    Parameters
    ----------
    path : path
        The file; whether it is .npz or safetensors is seen from its first bytes.
    key : str
        Under which the JSON stands.
    check : function, optional
        ``check(config, declared)`` gets the name, dtype and shape of every array before any of
        them is read, and raises where they are not what ``config`` asks for.

    Raises
    ------
    FormatError
        Not such a file, or damaged, or refused by ``check``.
    MissingFileError, StorageError
        There is no such file, or it cannot be read.
    ImportError
        The package safetensors is missing.
    """
    where = path_of(path)
    with storage_errors(where), open(where, "rb") as file:
        size, start = os.fstat(file.fileno()).st_size, file.read(9)
    npz = start[:4] == b"PK\3\4"
    if not npz:
        length = int.from_bytes(start[:8], "little")
        if start[8:] != b"{" or not 2 <= length <= min(size - 8, _HEADER_LIMIT):
            raise FormatError("neither a safetensors nor an .npz file", where, 0)
        package("safetensors.numpy", "this file", "fastopt[safetensors]")
    try:
        with (_npz_members if npz else _tensors)(where, key, size) as (note, declared, read):
            found = note.pop("sha256", None)
            if found is None:
                raise FormatError("holds no checksum; it was not written by this version")
            if check is not None:
                check(note, declared)
            arrays = {name: read(name) for name in declared}
        if found != _checksum(note, arrays):
            raise FormatError("the checksum does not fit: the file is damaged")
    except (ImportError, MemoryError):
        raise
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # EINVAL: a place outside the file
            raise StorageError(error.errno, os.strerror(error.errno), where) from error
        raise FormatError(f"cannot be read: {error}", where) from None
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise FormatError(f"cannot be read: {error}", where) from None
    return note, arrays


@contextlib.contextmanager
def _tensors(where: str, key: str, size: int) -> Iterator[_Opened]:
    from safetensors import safe_open

    with safe_open(where, framework="numpy") as file:
        metadata = file.metadata() or {}
        if key not in metadata:
            raise FormatError(f"not written by fastopt for this purpose: no {key!r}")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        declared = {k: (str(s.get_dtype()), tuple(s.get_shape())) for k, s in slices.items()}
        unknown = {k: d for k, (d, _) in declared.items() if d not in _TENSOR_DTYPES}
        if unknown:
            raise FormatError(f"dtypes that fastopt does not write: {unknown}")
        declared = {k: (_TENSOR_DTYPES[d], shape) for k, (d, shape) in declared.items()}
        yield _note(metadata[key]), declared, file.get_tensor


@contextlib.contextmanager
def _npz_members(where: str, key: str, size: int) -> Iterator[_Opened]:
    with zipfile.ZipFile(where) as archive:
        members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
        if f"{key}.npy" not in archive.namelist():
            raise FormatError(f"not written by fastopt for this purpose: no {key!r}")
        if len(members) != len(archive.namelist()):
            raise FormatError("a name stands for two arrays")
        total = sum(i.file_size for i in members.values())
        if total > size or any(i.compress_type != zipfile.ZIP_STORED for i in members.values()):
            raise FormatError("fastopt writes no compressed arrays")

        def header(file: IO[bytes]) -> tuple[tuple[int, ...], Any]:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise FormatError(f"an array of .npy version {version}")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            if fortran or dtype.kind not in "fiub":
                raise FormatError(f"an array of dtype {dtype} that fastopt does not write")
            return shape, dtype

        declared = {}
        for name, info in members.items():
            with archive.open(info) as file:
                shape, dtype = header(file)
            if math.prod(shape) * dtype.itemsize > info.file_size:
                raise FormatError(f"{name}: shape {shape} is larger than the file")
            declared[name] = (dtype.str.lstrip("<|"), shape)

        def read(name: str) -> Array:
            with archive.open(members[name]) as file:
                shape, dtype = header(file)
                count = math.prod(shape)
                result = np.frombuffer(file.read(), dtype).copy()  # to its end: zip checks the crc
            if result.size != count:
                raise FormatError(f"{name}: expected {count} values, got {result.size}")
            shaped: Array = result.reshape(shape)
            return shaped

        if declared.pop(key)[1][0] > _HEADER_LIMIT:
            raise FormatError(f"{key}: more than {_HEADER_LIMIT} bytes")
        yield _note(read(key).tobytes().decode()), declared, read


def _note(text: str) -> dict[str, Any]:
    note = json.loads(text)
    if not isinstance(note, dict):
        raise FormatError("the JSON is no object")
    return note


def _checksum(config: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    """SHA-256 over the JSON of ``config`` and each array's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(arrays):
        a = arrays[name]
        digest.update(f"{name} {a.dtype.str} {a.shape} ".encode())
        digest.update(a.reshape(-1).view(np.uint8).data)  # the bytes, without a copy
    return digest.hexdigest()
