"""The journal of a search: one append-only file, a checksum a record, one writer.

Line 1 says which search it is; each later line is one finished trial. A line is a crc32 in hex,
a space, a JSON object, a newline. Trials are acknowledged (told to the engine) only after
fdatasync. A torn last line, all that a kill or a full disk can leave, is cut off at opening;
damage before it is an error that names the byte. The file is held with flock, which ends with
its process.

Continuing a search replays it: the engine proposes the same trials again and the journal answers
those it knows, so the state after is bit for bit that of a run that was never stopped.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zlib
from typing import Any

from fastopt.errors import FormatError, StorageError

__all__ = ["Journal", "stored_header"]

FORMAT = "fastopt journal 1"


class Journal:
    """An open journal.

    Parameters
    ----------
    path : path
        Created if absent.
    header : dict
        What the search is (space, method, seed, batch ...), JSON values only.

    Attributes
    ----------
    trials : dict
        Trial number -> (objective as float, NaN if failed; error message or None), as found.

    Raises
    ------
    StorageError
        The file cannot be opened or is held by another process.
    FormatError
        It is no journal, is damaged before its last line, or belongs to another search.
    """

    def __init__(self, path: str | os.PathLike[str], header: dict[str, Any]) -> None:
        self.path = os.fspath(path)
        self.trials: dict[int, tuple[float, str | None]] = {}
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        try:
            self._file = os.open(self.path, flags, 0o644)
        except OSError as error:
            raise StorageError(f"storage: cannot open {self.path}: {error.strerror}") from error
        try:
            self._lock()
            self._end = self._read({"format": FORMAT, **header})
        except BaseException:
            os.close(self._file)
            raise

    def append(self, records: list[tuple[int, float, str | None]]) -> None:
        """Write finished trials (number, objective, error) and wait until they are on disk.

        Raises
        ------
        StorageError
            Nothing of this call is kept then; the file ends with the last whole record.
        """
        self._write(b"".join(_line(_record(*r)) for r in records))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    # --- inside

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # not a POSIX system: the user sees to it that there is one writer
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageError(f"storage: {self.path} is in use by another search") from None

    def _read(self, header: dict[str, Any]) -> int:
        """Read every record; returns the offset after the last whole one."""
        size = os.fstat(self._file).st_size
        data = b""
        while len(data) < size:
            part = os.pread(self._file, size - len(data), len(data))
            if not part:
                break
            data += part
        position, first = 0, True
        while position < len(data):
            stop = data.find(b"\n", position)
            record = _parse(data[position:stop]) if stop >= 0 else None
            if record is None:
                if stop >= 0:
                    raise FormatError(
                        "damaged record; cut the file there to go on without what follows",
                        self.path,
                        position,
                    )
                break  # torn: the last write did not finish
            if first:
                self._same(record, header)
                first = False
            else:
                self._take(record, position)
            position = stop + 1
        if first:
            if position < len(data) and not _line(header).startswith(data):
                raise FormatError("not a journal of a search", self.path, 0)
            self._end = 0
            self._write(_line(header))
            self._sync_folder()
            return self._end
        if position < len(data):
            os.ftruncate(self._file, position)
            _sync(self._file)
        return position

    def _same(self, found: dict[str, Any], header: dict[str, Any]) -> None:
        if found.get("format") != FORMAT:
            raise FormatError("not a journal of a search", self.path, 0)
        different = [k for k in header if found.get(k) != header[k]]
        if different:
            what = ", ".join(f"{k} {found.get(k)!r} (here {header[k]!r})" for k in different)
            raise FormatError(f"belongs to another search: {what}", self.path, 0)

    def _take(self, record: dict[str, Any], position: int) -> None:
        try:
            number, y, error = record["trial"], record["y"], record.get("error")
            value = math.nan if y is None else float.fromhex(y)
            if type(number) is not int or number < 0 or not isinstance(error, (str, type(None))):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise FormatError("not a trial's record", self.path, position) from None
        self.trials[number] = (value, error)

    def _write(self, data: bytes) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._file, data[done:], self._end + done)
            _sync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):  # else it is cut off at the next opening
                os.ftruncate(self._file, self._end)
            raise StorageError(f"storage: cannot write {self.path}: {error.strerror}") from error
        self._end += len(data)

    def _sync_folder(self) -> None:
        """The new file's name must survive a power cut, too."""
        folder = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def stored_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the journal at ``path`` says about its search; empty if there is none yet."""
    try:
        with open(path, "rb") as file:
            line = file.readline(1 << 20)
    except OSError:
        return {}
    record = _parse(line[:-1]) if line.endswith(b"\n") else None
    return record if record is not None and record.get("format") == FORMAT else {}


def _sync(file: int) -> None:
    getattr(os, "fdatasync", os.fsync)(file)


def _record(number: int, y: float, error: str | None) -> dict[str, Any]:
    record: dict[str, Any] = {"trial": number, "y": None if math.isnan(y) else y.hex()}
    if error is not None:
        record["error"] = error[:2000]
    return record


def _line(record: dict[str, Any]) -> bytes:
    body = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record of a whole, undamaged line; else None."""
    if len(line) < 10 or line[8:9] != b" ":
        return None
    body = line[9:]
    try:
        if line[:8] != b"%08x" % zlib.crc32(body):
            return None
        record = json.loads(body)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
