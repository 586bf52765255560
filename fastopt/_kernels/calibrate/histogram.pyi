from fastopt._arrays import Array

def count(
    counts: Array, x: Array, inv: Array, outer: int, channels: int, inner: int, threads: int
) -> None: ...
