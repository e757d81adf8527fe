from .base_trainer import BaseWMTPTrainer
from .config import WMTPConfig
from .critic_trainer import CriticWMTPTrainer
from .mtp_baseline_trainer import MTPBaselineTrainer
from .rho1_trainer import Rho1WMTPTrainer


__all__ = ["BaseWMTPTrainer", "CriticWMTPTrainer", "MTPBaselineTrainer", "Rho1WMTPTrainer", "WMTPConfig"]
