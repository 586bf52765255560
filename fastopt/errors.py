"""The one exception tree: everything fastopt raises on purpose is a FastoptError.

Each class is also the built-in error a caller would expect, so ``except ValueError`` works too.
A message says which argument, what was found, what is wanted, and how to mend it.
"""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = [
    "ArrayError",
    "ConcurrentUseError",
    "DTypeError",
    "DivergedError",
    "FastoptError",
    "FormatError",
    "MissingFileError",
    "OptionError",
    "StorageError",
    "TrialError",
    "TrialStopped",
    "TrialTimeout",
    "UnsupportedError",
    "WorkerDied",
]


class FastoptError(Exception):
    """Base of every error that fastopt raises on purpose."""


class ArrayError(FastoptError, ValueError):
    """An array has the wrong shape, layout, overlap or values."""


class DTypeError(FastoptError, TypeError):
    """An array or object has the wrong dtype or kind."""


class OptionError(FastoptError, ValueError):
    """An option (a number, a name, a combination) is outside what is allowed."""


class FormatError(FastoptError, ValueError):
    """A file or a state dict is not what it should be.

    Attributes
    ----------
    path : str or None
        The file.
    offset : int or None
        Byte offset of the fault, where known.
    """

    def __init__(self, message: str, path: str | None = None, offset: int | None = None) -> None:
        where = "" if path is None else f"{path}: "
        at = "" if offset is None else f" (at byte {offset})"
        super().__init__(f"{where}{message}{at}")
        self.path = path
        self.offset = offset


class UnsupportedError(FastoptError, NotImplementedError):
    """A model holds a part that fastopt does not handle; the model is untouched."""


class DivergedError(FastoptError, ArithmeticError):
    """A value became NaN or infinite where the caller asked for finite ones."""


class StorageError(FastoptError, OSError):
    """A journal or a file could not be written, locked or read back.

    ``errno``, ``strerror`` and ``filename`` are those of OSError where the system refused.
    """


class MissingFileError(StorageError, FileNotFoundError):
    """A file or its folder does not exist."""


class TrialError(FastoptError, RuntimeError):
    """An objective failed or returned something that is not a number."""


class TrialTimeout(TrialError, TimeoutError):
    """A trial took longer than its ``timeout`` and its process was ended."""


class TrialStopped(FastoptError):
    """Raised by ``report`` inside an objective whose trial is to end early."""


class WorkerDied(FastoptError, RuntimeError):
    """A process that evaluated a trial ended: killed, out of memory, or by itself."""


class ConcurrentUseError(FastoptError, RuntimeError):
    """Two threads used one stateful object at the same time."""


def refuse_array(a: Any, wanted: Any, size: int, name: str) -> NoReturn:
    """Raise what a kernel's door found wrong with the ndarray ``a``.

    Parameters
    ----------
    a : ndarray
        Not of the wanted dtype, byte order, size (any if negative), contiguous, aligned or, as the
        last reason that is left, writable.
    wanted : dtype
    size : int
    name : str
        The argument.
    """
    if a.dtype.newbyteorder("=") != wanted:
        raise DTypeError(f"{name}: expected dtype {wanted}, got {a.dtype}")
    if not a.dtype.isnative:
        raise DTypeError(
            f"{name}: expected native byte order, got {a.dtype.str}; "
            f"convert with .astype('{wanted.str}')"
        )
    if size >= 0 and a.size != size:
        raise ArrayError(f"{name}: expected {size} elements, got {a.size}")
    if not a.flags.c_contiguous:
        raise ArrayError(f"{name}: expected a C-contiguous array; use numpy.ascontiguousarray")
    if not a.flags.aligned:
        raise ArrayError(f"{name}: expected aligned memory, got a misaligned array; copy it first")
    raise ArrayError(f"{name}: is written in place but is read-only")
