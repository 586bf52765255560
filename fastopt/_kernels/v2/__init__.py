from fastopt._kernels._cpu import require

require(
    "v2"
)  # before any module here loads: on a lesser CPU its first instruction would be SIGILL
