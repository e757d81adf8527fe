from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .config import LUPISKDConfig
    from .trainer import LUPISKDTrainer

__all__ = ["LUPISKDConfig", "LUPISKDTrainer"]


def __getattr__(name: str):
    # what is said of a recipe before torch is loaded is in this folder too
    if name in __all__:
        return getattr(import_module({"LUPISKDConfig": ".config"}.get(name, ".trainer"), __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
