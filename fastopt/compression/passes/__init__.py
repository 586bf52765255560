"""The passes, in the order they are applied. Each is one file, written against the protocol.

A pass is a module with four names: ``NAME``; ``variables(model)``, the search variable of each
place it can act on; ``start(share, variable)``, a value to begin a search with that keeps about
``share`` of a place; ``apply(model, place, value, calibration)``, which edits the model there and
says in a few words what it did, or returns None where the value means "leave it". A fifth,
``final(value)``, may turn a value that was quick to search with into the thorough one to end with.
"""

from fastopt.compression.passes import fold, layer, merge, prune, quantize, refit, retrain

PASSES = {module.NAME: module for module in (fold, prune, merge, layer, refit, retrain, quantize)}

__all__ = ["PASSES"]
