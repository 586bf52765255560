from fastopt._arrays import Array

def encode(
    code: Array, x: Array, feature: Array, start: Array, cut: Array, threads: int
) -> None: ...
def add(
    out: Array,
    code: Array,
    test: Array,
    right: Array,
    root: Array,
    column: Array,
    value: Array,
    threads: int,
) -> None: ...
