from .kd_lora_config import KDLoRAConfig
from .kd_lora_trainer import KDLoRATrainer


__all__ = ["KDLoRAConfig", "KDLoRATrainer"]
