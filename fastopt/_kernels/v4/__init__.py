import fastopt._kernels.v3 as v3
from fastopt._kernels._cpu import require

# Before any module here loads: on a lesser CPU its first instruction would be SIGILL.
require("v4")

# A kernel that wider vectors do not speed up is not built again: v3's build serves here too.
__path__ += v3.__path__
