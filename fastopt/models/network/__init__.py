"""A NumPy network: it trains with ``fastopt.optim`` and compresses."""

from fastopt.models.network.dense import Dense
from fastopt.models.network.model import Network

__all__ = ["Dense", "Network"]
