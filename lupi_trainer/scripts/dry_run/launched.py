"""What an accelerate configuration asks of this machine, and of the recipe that it starts."""

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from ...training.reporters import is_installed
from ..recipe_words import RecipeError, one_line


@dataclass(frozen=True)
class Launched:
    """Of an accelerate configuration: its name, its processes in all and on this machine, what they need."""

    name: str | None = None
    processes: int = 1
    here: int = 1
    on_gpu: bool = False
    kind: str = "NO"

    @classmethod
    def read(cls, path: Path | None) -> "Launched":
        """Read one; `None` for a run in this process.

        Raises:
            RecipeError: it is no mapping.
        """
        if path is None:
            return cls(processes=int(os.environ.get("WORLD_SIZE", "1")))
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            processes, machines = int(config.get("num_processes", 1)), int(config.get("num_machines", 1))
        except (yaml.YAMLError, AttributeError, ValueError) as error:
            raise RecipeError(f"{path} is no accelerate configuration: {one_line(error)}") from error
        kind = str(config.get("distributed_type", "NO"))
        return cls(path.stem, processes, -(-processes // max(machines, 1)), not config.get("use_cpu"), kind)

    def faults(self, use_cpu: bool | None) -> list[str]:
        """Why it cannot start this run here."""
        if self.name is None or not self.on_gpu:
            return []
        if use_cpu:
            cpu = "single_cpu" if self.processes == 1 else "multi_cpu"
            return [
                f"--accelerate_config {self.name} is for GPUs, and the recipe has use_cpu: true: leave one of them "
                f"out, or take --accelerate_config {cpu}"
            ]
        found = []
        if self.kind == "DEEPSPEED" and not is_installed("deepspeed"):
            found.append(f"--accelerate_config {self.name} needs deepspeed: pip install deepspeed")
        import torch  # which alone knows its devices

        count = max(torch.cuda.device_count(), int(torch.backends.mps.is_available()), _other_devices(torch))
        if count < self.here:
            there = "there is none" if not count else f"there {'is' if count == 1 else 'are'} {count}"
            found.append(
                f"--accelerate_config {self.name} starts {self.here} "
                f"{'process on a GPU' if self.here == 1 else 'processes, each on a GPU of its own'}, and {there}, as "
                "far as PyTorch can see"
            )
        return found


def _other_devices(torch) -> int:
    return torch.xpu.device_count() if hasattr(torch, "xpu") and torch.xpu.is_available() else 0
