"""What row 0 offers, for type checkers; ``__init__.py`` picks the build."""

from fastopt._kernels.calibrate import clip as clip
from fastopt._kernels.calibrate import gptq as gptq
from fastopt._kernels.calibrate import histogram as histogram
from fastopt._kernels.calibrate import obs as obs
from fastopt._kernels.cluster import cluster as cluster
from fastopt._kernels.filter import depthwise as depthwise
from fastopt._kernels.genetic import genetic as genetic
from fastopt._kernels.genetic import genetic_bits as genetic_bits
from fastopt._kernels.genetic import genetic_select as genetic_select
from fastopt._kernels.linear import linear as linear
from fastopt._kernels.linear import linear_gram as linear_gram
from fastopt._kernels.linear import linear_sparse as linear_sparse
from fastopt._kernels.matmul import matmul as matmul
from fastopt._kernels.matmul import topk as topk
from fastopt._kernels.prune import prune as prune
from fastopt._kernels.quantize import codebook as codebook
from fastopt._kernels.quantize import dequantize as dequantize
from fastopt._kernels.quantize import pack as pack
from fastopt._kernels.quantize import quantize as quantize
from fastopt._kernels.quantize import quantize_range as quantize_range
from fastopt._kernels.search import cma as cma
from fastopt._kernels.search import fronts as fronts
from fastopt._kernels.search import gp as gp
from fastopt._kernels.shared.cpu import levels as levels
from fastopt._kernels.sparse import sparse as sparse
from fastopt._kernels.trees import forest as forest
from fastopt._kernels.update import rules_adam as rules_adam
from fastopt._kernels.update import rules_rmsprop as rules_rmsprop
from fastopt._kernels.update import rules_sgd as rules_sgd
from fastopt._kernels.update import update as update
from fastopt._kernels.update import update_state as update_state

isa: str
