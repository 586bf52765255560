"""A NumPy network: a graph of modules that trains with ``fastopt.optim`` and compresses."""

from fastopt.models.network.activations import Activation, Softmax
from fastopt.models.network.attention import Attention, self_attention
from fastopt.models.network.combine import Add, Concat, Flatten, Mul
from fastopt.models.network.conv import Conv2d
from fastopt.models.network.dense import Dense
from fastopt.models.network.embedding import Embedding, Positions
from fastopt.models.network.model import Network
from fastopt.models.network.module import Module
from fastopt.models.network.norm import BatchNorm, LayerNorm
from fastopt.models.network.pool import AvgPool2d, GlobalAvgPool2d, MaxPool2d, Mean

__all__ = [
    "Activation",
    "Add",
    "Attention",
    "AvgPool2d",
    "BatchNorm",
    "Concat",
    "Conv2d",
    "Dense",
    "Embedding",
    "Flatten",
    "GlobalAvgPool2d",
    "LayerNorm",
    "MaxPool2d",
    "Mean",
    "Module",
    "Mul",
    "Network",
    "Positions",
    "Softmax",
    "self_attention",
]
