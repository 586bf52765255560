"""Row 1: the files that fastopt writes and reads.

One way to write (:func:`write_whole`): all of a file or nothing. One form for what is ours and
holds arrays (:func:`save_arrays`, :func:`load_arrays`): safetensors with a checksum. What the
system refuses is a StorageError with its ``errno``; a file that is missing is also a
FileNotFoundError.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from fastopt._arrays import Array
from fastopt.errors import (
    DTypeError,
    FormatError,
    MissingFileError,
    OptionError,
    StorageError,
)

__all__ = ["load_arrays", "path_of", "save_arrays", "storage_errors", "write_whole"]

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Bytes of the JSON before the arrays that are read at most; safetensors itself allows 100 MB.
_HEADER_LIMIT = 16 << 20


def path_of(path: Any, name: str = "path") -> str:
    """``path`` as a str, or a refusal that names the argument."""
    try:
        found = os.fspath(path)
    except TypeError:
        raise DTypeError(f"{name}: expected a path, got {type(path).__name__}") from None
    if isinstance(found, bytes):
        found = os.fsdecode(found)
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
                        os.chown(temporary, before.st_uid, before.st_gid)
                    os.chmod(temporary, stat.S_IMODE(before.st_mode))
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
    if fcntl is None:
        return
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
    if fcntl is None:
        return True
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
    path: str | os.PathLike[str], key: str, config: Mapping[str, Any], arrays: Mapping[str, Array]
) -> None:
    """Write a safetensors file: ``arrays`` as tensors, ``config`` as JSON under ``key``.

    The JSON also holds the SHA-256 of both, which :func:`load_arrays` checks.
    """
    package = _safetensors()
    contiguous = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in arrays.items()}
    note = json.dumps({**config, "sha256": _checksum(config, contiguous)})
    data = package.save(contiguous, metadata={key: note})
    with write_whole(path) as file:
        file.write(data)


def load_arrays(
    path: str | os.PathLike[str], key: str
) -> tuple[dict[str, Any], dict[str, Array]]:
    """``config`` and ``arrays`` of what :func:`save_arrays` wrote, every bit of them checked.

    Raises
    ------
    FormatError
        Not such a file, or damaged.
    MissingFileError, StorageError
        There is no such file, or it cannot be read.
    ImportError
        The package safetensors is missing.
    """
    _safetensors()
    from safetensors import safe_open

    where = path_of(path)
    with storage_errors(where), open(where, "rb") as file:
        size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
    if size < 10 or not 2 <= length <= min(size - 8, _HEADER_LIMIT):
        raise FormatError(f"not a safetensors file: a header of {length} bytes", where, 0)
    try:
        with safe_open(where, framework="numpy") as tensors:
            note = json.loads((tensors.metadata() or {})[key])
            found = note.pop("sha256")
            arrays = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
            right = found == _checksum(note, arrays)
    except KeyError as error:
        raise FormatError(f"not written by fastopt for this purpose: no {error}", where) from None
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise FormatError(f"cannot be read: {error}", where) from None
    if not right:
        raise FormatError("the checksum does not fit: the file is damaged", where)
    return note, arrays


def _checksum(config: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    """SHA-256 over the JSON of ``config`` and each array's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(arrays):
        a = arrays[name]
        digest.update(f"{name} {a.dtype.str} {a.shape} ".encode())
        digest.update(a.reshape(-1).view(np.uint8))  # the bytes, without a copy
    return digest.hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            'this file needs the package safetensors: pip install "fastopt[safetensors]"'
        ) from None
    return safetensors.numpy
