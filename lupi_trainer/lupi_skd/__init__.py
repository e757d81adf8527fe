from .config import LUPISKDConfig
from .trainer import LUPISKDTrainer


__all__ = ["LUPISKDConfig", "LUPISKDTrainer"]
