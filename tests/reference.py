"""A plain NumPy twin of every kernel: the oracle that the compiled code is compared with.

One section a kernel file, in the order of the names of those files.
"""

from __future__ import annotations

