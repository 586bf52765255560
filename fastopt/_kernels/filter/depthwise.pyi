from fastopt._arrays import Array

def filter_planes(
    y: Array, x: Array, w: Array, sh: int, sw: int, dh: int, dw: int, threads: int
) -> None: ...
def spread_planes(
    x: Array, y: Array, w: Array, sh: int, sw: int, dh: int, dw: int, threads: int
) -> None: ...
def weigh_planes(
    w: Array, x: Array, y: Array, sh: int, sw: int, dh: int, dw: int, threads: int
) -> None: ...
