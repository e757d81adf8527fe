from .base_trainer import BaseWMTPTrainer
from .critic_trainer import CriticWMTPTrainer
from .mtp_baseline_trainer import MTPBaselineTrainer
from .rho1_trainer import Rho1WMTPTrainer
from .wmtp_config import WMTPConfig


__all__ = ["BaseWMTPTrainer", "CriticWMTPTrainer", "MTPBaselineTrainer", "Rho1WMTPTrainer", "WMTPConfig"]
