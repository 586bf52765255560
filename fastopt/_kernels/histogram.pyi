from fastopt._arrays import Array

def extent(
    low: Array, high: Array, x: Array, outer: int, channels: int, inner: int, threads: int
) -> bool: ...
def count(
    counts: Array, x: Array, inv: Array, outer: int, channels: int, inner: int, threads: int
) -> None: ...
