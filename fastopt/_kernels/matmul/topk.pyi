from fastopt._arrays import Array

def search(
    score: Array,
    row: Array,
    query: Array,
    codes: Array,
    queries: int,
    n: int,
    d: int,
    k: int,
    kind: int,
    threads: int,
) -> None: ...
