"""Search over mixed spaces: spaces, engines to ask and tell, and the loop around them."""

from fastopt.search.cma import CMA
from fastopt.search.de import DE
from fastopt.search.driver import minimize
from fastopt.search.engine import Random
from fastopt.search.genetic import Genetic
from fastopt.search.gp import GP
from fastopt.search.greedy import Greedy
from fastopt.search.islands import Islands
from fastopt.search.nsga2 import NSGA2
from fastopt.search.operators import tournament, variation
from fastopt.search.packed import count_bits, pack_bits, unpack_bits
from fastopt.search.pareto import crowding, fronts, hypervolume
from fastopt.search.portfolio import Portfolio
from fastopt.search.result import Pareto, Progress, Result
from fastopt.search.space import Bool, Choice, Float, Int, Permutation, Space, Vector
from fastopt.search.stored import load_result
from fastopt.search.subset import Subset
from fastopt.search.tpe import TPE

__all__ = [
    "CMA",
    "DE",
    "GP",
    "NSGA2",
    "TPE",
    "Bool",
    "Choice",
    "Float",
    "Genetic",
    "Greedy",
    "Int",
    "Islands",
    "Pareto",
    "Permutation",
    "Portfolio",
    "Progress",
    "Random",
    "Result",
    "Space",
    "Subset",
    "Vector",
    "count_bits",
    "crowding",
    "fronts",
    "hypervolume",
    "load_result",
    "minimize",
    "pack_bits",
    "tournament",
    "unpack_bits",
    "variation",
]
