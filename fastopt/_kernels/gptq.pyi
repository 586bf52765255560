from fastopt._arrays import Array

ROWS: int
COLS: int

def target(
    t: Array, e: Array, w: Array, panels: Array, tiles: int, n: int, k0: int, k1: int, threads: int
) -> None: ...
def round_columns(
    code: Array,
    e: Array,
    t: Array,
    w: Array,
    panels: Array,
    scale: Array,
    zero: Array,
    group: Array,
    tiles: int,
    n: int,
    k0: int,
    k1: int,
    qmin: float,
    qmax: float,
    threads: int,
) -> None: ...
