from fastopt._kernels.shared.cpu import require

require("plain")  # the build without a level, for machines other than x86-64
