"""Knowledge that only the teacher can read, moved into the student's weights."""

from importlib import import_module
from typing import TYPE_CHECKING


__version__ = "0.2.0"

_PUBLIC = {
    "CriticWMTPTrainer": "wmtp",
    "MTPBaselineTrainer": "wmtp",
    "MTPHeads": "models.mtp_heads",
    "Rho1WMTPTrainer": "wmtp",
    "WMTPConfig": "wmtp",
    "KDLoRAConfig": "kd_lora",
    "KDLoRATrainer": "kd_lora",
    "LUPISKDConfig": "lupi_skd",
    "LUPISKDTrainer": "lupi_skd",
    "Rollout": "speculative",
    "TeacherServer": "teachers.vllm",
    "TopK": "speculative",
    "skd_rollout": "speculative",
    "load_probes": "data.records",
    "load_training_data": "data.records",
}
__all__ = [
    "CriticWMTPTrainer",
    "KDLoRAConfig",
    "KDLoRATrainer",
    "LUPISKDConfig",
    "LUPISKDTrainer",
    "MTPBaselineTrainer",
    "MTPHeads",
    "Rho1WMTPTrainer",
    "Rollout",
    "TeacherServer",
    "TopK",
    "WMTPConfig",
    "load_probes",
    "load_training_data",
    "skd_rollout",
]

if TYPE_CHECKING:
    from .data.records import load_probes, load_training_data
    from .kd_lora import KDLoRAConfig, KDLoRATrainer
    from .lupi_skd import LUPISKDConfig, LUPISKDTrainer
    from .models.mtp_heads import MTPHeads
    from .speculative import Rollout, TopK, skd_rollout
    from .teachers.vllm import TeacherServer
    from .wmtp import CriticWMTPTrainer, MTPBaselineTrainer, Rho1WMTPTrainer, WMTPConfig


def __getattr__(name: str):
    # importing the package stays quick: TRL and transformers are loaded when a public name is first used
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
