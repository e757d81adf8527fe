"""A run whose second process fails at its second step, while the first one waits for it."""

import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from lupi_trainer.scripts import leave
from tests.training import make_trainer


class Spoil(TrainerCallback):
    """Breaks the weights of process 1 alone."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if args.process_index == 1:
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))


def main() -> None:
    trainer, _ = make_trainer(Path(sys.argv[1]), config_max_steps=4)
    trainer.add_callback(Spoil())
    trainer.train()


if __name__ == "__main__":
    leave(main)
