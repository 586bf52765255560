"""The journal of a search: one append-only file, a checksum per record, one writer.

Line 1 says which search it is; each later line is one finished trial. A line is a crc32 in hex,
a space, a JSON object, a newline. A trial's record holds its number, a digest of its values (and
the values, up to 64 of them), its result, and in asynchronous mode how many trials had been
proposed when it arrived.

Every record is written before the engine is told of the trial, so a killed process loses none.
fdatasync follows at most every 50 ms: a power cut can lose the trials that finished within 50 ms
after the last one. A torn last line, all that a kill or a full disk can leave, is cut off at
opening; damage before it is an error that names the byte. The file is held with flock, which ends
with its process, and is not held by children that it forks.

Continuing a search replays it: the engine proposes the same trials again and the journal answers
those it knows, so the state after is bit for bit that of a run that was never stopped. A record
whose digest is not that of the point proposed is refused.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import time
import weakref
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from fastopt._files import path_of, storage_errors
from fastopt.errors import FormatError, StorageError
from fastopt.search.engine import fingerprint
from fastopt.search.evaluation import Outcome
from fastopt.search.layout import Matrix

__all__ = ["Journal", "Record", "read", "stored_header"]

FORMAT = "fastopt journal 2"
SYNC_S = 0.05  # the longest stretch of finished trials that a power cut can lose
VALUES = 64  # columns up to which a record holds the values themselves
HEADER_BYTES = 1 << 24


class Record(NamedTuple):
    """A trial as the journal holds it."""

    x: int  # digest of its values
    outcome: Outcome
    asked: int | None  # trials proposed before it was told, in asynchronous mode
    values: list[float] | None


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
    trials : dict of int to Record
        By number, in the order in which they arrived.

    Raises
    ------
    StorageError
        The file cannot be opened or is held by another process.
    FormatError
        It is no journal, is damaged before its last line, or belongs to another search.
    """

    def __init__(self, path: str | os.PathLike[str], header: dict[str, Any]) -> None:
        self.path = path_of(path, "storage")
        self.trials: dict[int, Record] = {}
        self._synced = 0.0
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        with storage_errors(self.path):
            self._file = os.open(self.path, flags, 0o666)
        _open.add(self)
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise StorageError(f"storage: {self.path} is no regular file")
            self._lock()
            self._end = self._read({"format": FORMAT, **header})
        except BaseException:
            self._release()
            raise

    def append(self, records: Iterable[tuple[int, Matrix, Outcome, int | None]]) -> None:
        """Write finished trials: number, (d,) values, outcome, trials proposed before.

        Raises
        ------
        StorageError
            Nothing of this call is kept then, the file ends with the last whole record; or the
            file was deleted or cut by somebody else.
        """
        self._write(b"".join(_trial(*r) for r in records))

    def forget(self, first: int) -> None:
        """Void what is recorded of trials ``first`` and later: they are proposed anew."""
        self._write(_line({"forget": first}))
        _forget(self.trials, first)

    def close(self) -> None:
        """Wait until everything is on disk, and let the file go."""
        if self._file >= 0:
            try:
                self._sync()
            finally:
                self._release()

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

    def _release(self) -> None:
        file, self._file = self._file, -1
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            # A child made without Python's fork hooks may hold a copy of the descriptor.
            fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)

    def _read(self, header: dict[str, Any]) -> int:
        """Read every record; returns the offset after the last whole one."""
        size = os.fstat(self._file).st_size
        data = b""
        while len(data) < size:
            part = os.pread(self._file, size - len(data), len(data))
            if not part:
                break
            data += part
        found, self.trials, end = parse(data, self.path)
        if found is None:
            if data and not _line(header).startswith(data):
                raise FormatError("not a journal of a search", self.path, 0)
            os.ftruncate(self._file, 0)  # what there is of a torn first line
            self._end = 0
            self._write(_line(header))
            self._sync()
            self._sync_folder()
            return self._end
        told = [k for k in header if k != "variables"]  # those are for readers; a digest counts
        different = [k for k in told if found.get(k) != header[k]]
        if different:
            what = ", ".join(f"{k} {found.get(k)!r} (here {header[k]!r})" for k in different)
            raise FormatError(f"belongs to another search: {what[:2000]}", self.path, 0)
        if end < len(data):
            os.ftruncate(self._file, end)
            _sync(self._file)
        return end

    def _write(self, data: bytes) -> None:
        if self._file < 0:
            raise StorageError(f"storage: {self.path} is closed, or held by the parent process")
        self._check_size()
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._file, data[done:], self._end + done)
        except OSError as error:
            with contextlib.suppress(OSError):  # else it is cut off at the next opening
                os.ftruncate(self._file, self._end)
            raise StorageError(
                error.errno, f"storage: cannot write: {error.strerror}", self.path
            ) from error
        self._end += len(data)
        if time.monotonic() - self._synced >= SYNC_S:
            self._sync()

    def _sync(self) -> None:
        try:
            _sync(self._file)
        except OSError as error:
            raise StorageError(
                error.errno, f"storage: cannot write: {error.strerror}", self.path
            ) from error
        self._synced = time.monotonic()
        status = self._check_size()
        if status.st_nlink == 0 or not _same_file(self.path, status):
            raise StorageError(f"storage: {self.path} was deleted or replaced during the search")

    def _check_size(self) -> os.stat_result:
        status = os.fstat(self._file)
        if status.st_size != self._end:
            raise StorageError(
                f"storage: {self.path} was changed by somebody else: it has {status.st_size} "
                f"bytes, {self._end} were written"
            )
        return status

    def _sync_folder(self) -> None:
        """The new file's name must survive a power cut, too."""
        folder = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# Journals open in this process. A forked child closes its copies: they would hold the lock.
_open: weakref.WeakSet[Journal] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    for journal in list(_open):
        if journal._file >= 0:
            with contextlib.suppress(OSError):
                os.close(journal._file)
            journal._file = -1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)


def stored_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the journal at ``path`` says about its search; empty if there is none yet.

    Raises
    ------
    FormatError
        The file is no journal.
    """
    where = path_of(path, "storage")
    if not os.path.isfile(where):
        return {}
    with storage_errors(where), open(where, "rb") as file:
        line = file.readline(HEADER_BYTES)
    header: dict[str, Any] | None = parse(line, where)[0]
    if header is not None and not {"method", "options", "batch", "own_batch"} <= set(header):
        raise FormatError("not the header of a journal of minimize", where, 0)
    return header or {}


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[int, Record]]:
    """Header and trials of a journal that another process may be writing.

    Raises
    ------
    FormatError
        The file is no journal or is damaged.
    """
    where = path_of(path)
    with storage_errors(where), open(where, "rb") as file:
        data = file.read()
    header, trials, _ = parse(data, where)
    if header is None:
        raise FormatError("not a journal of a search", where, 0)
    return header, trials


def parse(data: bytes, path: str) -> tuple[dict[str, Any] | None, dict[int, Record], int]:
    """Header (None without a whole line), trials, and the offset after the last whole record."""
    header: dict[str, Any] | None = None
    trials: dict[int, Record] = {}
    objectives: int | None = None
    position = 0
    while (stop := data.find(b"\n", position)) >= 0:
        record = _checked(data[position:stop])
        if header is None:
            header = _header(record, data[position:stop], path)
        elif record is None:
            raise FormatError(
                "damaged record; cut the file there to go on without what follows", path, position
            )
        else:
            try:
                if "forget" in record:
                    _forget(trials, _count(record["forget"]))
                else:
                    number, taken = _taken(record)
                    y = taken.outcome.y
                    if isinstance(y, tuple) or y == y:
                        here = len(y) if isinstance(y, tuple) else 1
                        if here != (objectives or here):
                            raise ValueError
                        objectives = here
                    trials.pop(number, None)
                    trials[number] = taken
            except (KeyError, TypeError, ValueError, OverflowError):
                raise FormatError("not a trial's record", path, position) from None
        position = stop + 1
    return header, trials, position


def _header(record: dict[str, Any] | None, line: bytes, path: str) -> dict[str, Any]:
    """The first line, if it is that of a journal of this version with fields of the right kind."""
    name = FORMAT.rpartition(" ")[0]
    if record is None or not str(record.get("format")).startswith(name):
        damaged = line[9:].startswith(b'{"format":"' + name.encode())
        what = "damaged first record of a journal" if damaged else "not a journal of a search"
        raise FormatError(what, path, 0)
    if record["format"] != FORMAT:
        raise FormatError(f"is a {record['format']!r}; this version reads {FORMAT!r}", path, 0)
    fits = (
        isinstance(record.get("options", {}), dict)
        and isinstance(record.get("method", ""), str)
        and all(type(record.get(n, 1)) is int for n in ("batch", "own_batch"))
        and record.get("batch", 0) >= 0
        and record.get("own_batch", 1) >= 1
    )
    if not fits:
        raise FormatError("not the header of a journal", path, 0)
    return record


def _forget(trials: dict[int, Record], first: int) -> None:
    for number in [n for n in trials if n >= first]:
        del trials[number]


def _same_file(path: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), status)
    except OSError:
        return False


def _sync(file: int) -> None:
    getattr(os, "fdatasync", os.fsync)(file)


def _trial(number: int, values: Matrix, outcome: Outcome, asked: int | None) -> bytes:
    """One trial's line, put together by hand: this is most of what a journaled trial costs."""
    y, constraints, message, _, reports, stopped = outcome
    if isinstance(y, float):
        hexed = f'"{y.hex()}"' if y == y else "null"
    else:
        hexed = json.dumps([v.hex() for v in y])
    shown = f',"values":{values.tolist()}' if len(values) <= VALUES else ""
    body = f'{{"trial":{number},"x":"{fingerprint(values):016x}","y":{hexed}{shown}'
    if not (constraints or message or reports or stopped) and asked is None:
        data = (body + "}").encode()
        return b"%08x %b\n" % (zlib.crc32(data), data)
    rest: dict[str, Any] = {}
    if constraints:
        rest["constraints"] = [c.hex() for c in constraints]
    if message is not None:
        rest["error"] = message[:2000]
    if reports:
        rest["reports"] = [[step, value.hex()] for step, value in reports]
    if stopped:
        rest["stopped"] = True
    if asked is not None:
        rest["asked"] = asked
    body += "," + json.dumps(rest)[1:] if rest else "}"
    data = body.encode()
    return b"%08x %b\n" % (zlib.crc32(data), data)


def _line(record: dict[str, Any]) -> bytes:
    body = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _checked(line: bytes) -> dict[str, Any] | None:
    """The record of a whole, undamaged line; else None."""
    if len(line) < 10 or line[8:9] != b" ":
        return None
    body = line[9:]
    try:
        if line[:8] != b"%08x" % zlib.crc32(body):
            return None
        record = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _taken(record: dict[str, Any]) -> tuple[int, Record]:
    """A trial's number and content; ValueError and the like if a field is not what it must be."""
    y, error, stopped = record["y"], record.get("error"), record.get("stopped", False)
    values, asked = record.get("values"), record.get("asked")
    if not isinstance(error, (str, type(None))) or type(stopped) is not bool:
        raise ValueError
    if values is not None and not all(type(v) in (int, float) for v in values):
        raise ValueError
    if values is not None:
        values = [float(v) for v in values]
    outcome = Outcome(
        y=_objective_values(y),
        constraints=tuple(map(_float, record.get("constraints", ()))),
        message=error,
        reports=tuple((_count(s), _float(v)) for s, v in record.get("reports", ())),
        stopped=stopped,
    )
    digest = int(record["x"], 16) if len(record["x"]) == 16 else -1
    asked = None if asked is None else _count(asked)
    return _count(record["trial"]), Record(digest, outcome, asked, values)


def _objective_values(y: Any) -> float | tuple[float, ...]:
    """NaN of a failed trial, one number, or one per objective."""
    if not isinstance(y, list):
        return math.nan if y is None else _float(y)
    if len(y) < 2:
        raise ValueError
    return tuple(map(_float, y))


def _float(text: Any) -> float:
    if not isinstance(text, str):
        raise ValueError
    return float.fromhex(text)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError
    return value
