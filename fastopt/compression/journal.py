"""The journal of a compression: what was measured of each recipe, also on disk."""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

from fastopt.errors import StorageError

__all__ = ["Memory"]


class Memory:
    """Evaluated recipes by key; with a path also on disk, so a killed run can go on.

    One line per recipe with a CRC-32; the first line says what the run was. A torn last line is
    dropped.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: str) -> None:
        self._known: dict[str, list[float]] = {}
        self._file = None
        if path is None:
            return
        where = os.fspath(path)
        try:
            self._file = open(where, "a+", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise StorageError(f"{where}: cannot be written: {error.strerror}") from None
        self._file.seek(0)
        lines = self._file.read().split("\n")
        if lines[0]:
            self._read(lines, where, identity)
        else:
            self._write(["fastopt.compress", identity])

    def _read(self, lines: list[str], where: str, identity: str) -> None:
        assert self._file is not None
        records = [_record(line) for line in lines]
        if records[0] is None or records[0][0] != "fastopt.compress":
            raise StorageError(f"{where}: is not a journal of fastopt compress")
        if records[0][1] != identity:
            raise StorageError(
                f"{where}: belongs to another run (other model, data or options); "
                "give another --storage"
            )
        good = 0
        for line, record in zip(lines, records, strict=True):
            if record is None:
                break
            good += len(line.encode()) + 1
            if record[0] != "fastopt.compress":
                self._known[record[0]] = record[1]
        self._file.truncate(good)
        self._file.seek(0, os.SEEK_END)

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
        text = json.dumps(record)
        try:
            self._file.write(f"{zlib.crc32(text.encode()):08x} {text}\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(f"{self._file.name}: {error.strerror}") from None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _record(line: str) -> list[Any] | None:
    code, _, text = line.partition(" ")
    if f"{zlib.crc32(text.encode()):08x}" != code:
        return None
    found: list[Any] = json.loads(text)
    return found
