from fastopt._arrays import Array

def dot(
    score: Array,
    row: Array,
    query: Array,
    codes: Array,
    queries: int,
    n: int,
    d: int,
    k: int,
    threads: int,
) -> None: ...
def hamming(
    score: Array,
    row: Array,
    query: Array,
    codes: Array,
    queries: int,
    n: int,
    d: int,
    k: int,
    threads: int,
) -> None: ...
