from fastopt._kernels.shared.cpu import require

# Before any module here loads: on a lesser CPU its first instruction would be SIGILL.
require("v2")
