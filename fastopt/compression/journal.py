"""The journal of a compression: what was measured of each recipe, also on disk."""

from __future__ import annotations

import json
import os
import zlib
from typing import IO, Any

from fastopt._files import path_of, storage_errors
from fastopt.errors import FormatError, StorageError

__all__ = ["Memory"]

_NUMBERS = 5  # of a candidate: cost, drop, its standard error, error, cautious drop


class Memory:
    """Evaluated recipes by key; with a path also on disk, so a killed run can go on.

    One line per recipe with a CRC-32; the first line says what the run was. A torn last line, all
    that a kill can leave, is dropped; damage before it is refused.

    Raises
    ------
    FormatError
        The file is no such journal, is damaged, or belongs to another run.
    StorageError
        It cannot be read or written, or another process has it.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: str) -> None:
        self._known: dict[str, list[float]] = {}
        self._file: IO[bytes] | None = None
        if path is None:
            return
        where = path_of(path, "storage")
        with storage_errors(where):
            self._file = open(where, "a+b")  # noqa: SIM115
        try:
            self._hold(where)
            with storage_errors(where):
                self._file.seek(0)
                data = self._file.read()
            if b"\n" in data:
                self._read(data, where, identity)
            elif data and not _line(["fastopt.compress", identity]).startswith(data):
                raise FormatError("is not a journal of fastopt compress", where, 0)
            else:  # new, or a torn first line
                with storage_errors(where):
                    self._file.truncate(0)
                self._write(["fastopt.compress", identity])
        except BaseException:
            self._file.close()
            raise

    def _hold(self, where: str) -> None:
        """Keep other processes out while the file is open."""
        try:
            import fcntl
        except ImportError:  # not a POSIX system: the user sees to it that there is one writer
            return
        assert self._file is not None
        try:
            # not flock: a forked worker would go on holding it after this process was killed
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageError(f"storage: {where} is in use by another run") from None

    def _read(self, data: bytes, where: str, identity: str) -> None:
        assert self._file is not None
        good = 0
        for line in data.split(b"\n")[:-1]:
            record = _record(line)
            if good == 0:
                if record is None or record[0] != "fastopt.compress":
                    raise FormatError("is not a journal of fastopt compress", where, 0)
                if record[1] != identity:
                    raise FormatError(
                        "belongs to another run (other model, data or options); "
                        "give another --storage",
                        where,
                    )
            elif record is None or not _is_measured(record[1]):
                raise FormatError(
                    "damaged record; cut the file there to go on without what follows",
                    where,
                    good,
                )
            else:
                self._known[record[0]] = record[1]
            good += len(line) + 1
        with storage_errors(where):
            self._file.truncate(good)

    def get(self, key: str) -> list[float] | None:
        """What was measured of a recipe, where it is known."""
        return self._known.get(key)

    def put(self, key: str, values: list[float]) -> None:
        """Keep them."""
        self._known[key] = values
        if self._file is not None:
            self._write([key, values])

    def _write(self, record: list[Any]) -> None:
        assert self._file is not None
        with storage_errors(os.fsdecode(self._file.name)):
            self._file.write(_line(record))
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _line(record: list[Any]) -> bytes:
    text = json.dumps(record).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _record(line: bytes) -> list[Any] | None:
    """A name and a value; None where the line is damaged."""
    code, _, text = line.partition(b" ")
    if b"%08x" % zlib.crc32(text) != code:
        return None
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(found, list) and len(found) == 2 and isinstance(found[0], str)
    return found if whole else None


def _is_measured(values: Any) -> bool:
    """Whether they are a candidate's; the first two, cost and drop, are never NaN."""
    return (
        isinstance(values, list)
        and len(values) == _NUMBERS
        and all(type(v) is float or (type(v) is int and abs(v) < 2**63) for v in values)
        and values[0] >= 0
        and values[1] == values[1]
    )
