"""What several kernels use, and the modules that are built once: the CPU's level, the pool."""
