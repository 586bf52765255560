"""Row 1: a seed becomes one 64-bit key of the counter-based streams in the kernels."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np

from fastopt.errors import DTypeError, OptionError

__all__ = ["Seed", "check_seed", "generator_of", "key_of"]

Seed: TypeAlias = "int | np.integer | np.random.SeedSequence | np.random.Generator | None"


def check_seed(seed: Seed) -> None:
    """Refuse what is no seed, without a draw from a Generator."""
    if not isinstance(seed, np.random.Generator):
        key_of(seed)


def key_of(seed: Seed, *spawn: int) -> int:
    """64-bit key from a seed: equal seeds give equal keys; None gives fresh entropy.

    ``spawn`` derives independent keys from one seed (``key_of(seed, 0)``, ``key_of(seed, 1)``).
    A Generator is advanced by one draw, as NumPy's own functions do.
    """
    if isinstance(seed, np.random.Generator):
        entropy: int | None = int(seed.integers(1 << 63))
        base: tuple[int, ...] = ()
    elif isinstance(seed, np.random.SeedSequence):
        raw = seed.entropy
        entropy = (
            raw
            if raw is None or isinstance(raw, int)
            else int.from_bytes(np.asarray(raw, dtype=np.uint64).tobytes(), "little")
        )
        base = tuple(int(k) for k in seed.spawn_key)
    elif seed is None:
        entropy, base = None, ()
    elif isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        if seed < 0:
            raise OptionError(f"seed: expected an integer >= 0, got {seed}")
        entropy, base = int(seed), ()
    else:
        raise DTypeError(
            "seed: expected None, an int, a SeedSequence or a Generator, "
            f"got {type(seed).__name__}"
        )
    if entropy is None:
        return _mixed.__wrapped__(None, (*base, *spawn))
    return _mixed(entropy, (*base, *spawn))


@lru_cache(maxsize=256)  # mixing takes longer than many a kernel
def _mixed(entropy: int | None, spawn: tuple[int, ...]) -> int:
    sequence = np.random.SeedSequence(entropy, spawn_key=spawn)
    return int(sequence.generate_state(1, np.uint64)[0])


def generator_of(seed: Seed) -> np.random.Generator:
    """A NumPy Generator for draws outside the kernels; a Generator is returned as it is."""
    if isinstance(seed, np.random.Generator):
        return seed
    return np.random.Generator(np.random.Philox(key=key_of(seed)))
