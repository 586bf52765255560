from fastopt._arrays import Array

COLS: int

def best_range(
    low: Array,
    high: Array,
    x: Array,
    weight: Array | None,
    rows: int,
    n: int,
    weight_rows: int,
    wide: Array,
    near: Array,
    symmetric: bool,
    steps: float,
    zero: float,
    qmin: float,
    qmax: float,
    threads: int,
) -> None: ...
def feedback(
    code: Array,
    scale: Array,
    zero: Array,
    w: Array,
    panels: Array,
    order: Array,
    cost: Array,
    rows: int,
    n: int,
    size: int,
    early: bool,
    wide: Array,
    near: Array,
    symmetric: bool,
    steps: float,
    middle: float,
    qmin: float,
    qmax: float,
    threads: int,
) -> None: ...
def eliminate(order: Array, loss: Array, hinv: Array, weight: Array, threads: int) -> None: ...
