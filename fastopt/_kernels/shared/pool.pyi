"""Threads."""

MOST: int

def cpus() -> int: ...
