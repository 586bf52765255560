"""torch.nn modules that torch.fx traces."""

from fastopt.models.torch.model import TorchModel, is_module

__all__ = ["TorchModel", "is_module"]
