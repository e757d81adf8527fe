from .config import KDLoRAConfig
from .trainer import KDLoRATrainer


__all__ = ["KDLoRAConfig", "KDLoRATrainer"]
