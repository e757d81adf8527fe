from .lupi_skd_config import LUPISKDConfig
from .lupi_skd_trainer import LUPISKDTrainer


__all__ = ["LUPISKDConfig", "LUPISKDTrainer"]
