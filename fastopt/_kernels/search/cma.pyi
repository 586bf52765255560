from fastopt._arrays import Array

def sample(x: Array, u: Array, scale: Array, axes: Array, basis: Array, work: Array) -> None: ...
def update(
    c: Array,
    mean: Array,
    path_sigma: Array,
    path_c: Array,
    steps: Array,
    weights: Array,
    scale: Array,
    axes: Array,
    basis: Array,
    work: Array,
    mu: int,
    mu_eff: float,
    c_sigma: float,
    c_c: float,
    c_1: float,
    c_mu: float,
    chi: float,
    fresh: float,
) -> float: ...
def decompose(basis: Array, axes: Array, c: Array, work: Array) -> bool: ...
