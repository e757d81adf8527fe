"""A run whose second process fails at its second step, while the first one waits for it."""

import os
import sys
from pathlib import Path

from transformers import TrainerCallback

from lupi_trainer.scripts import leave
from tests.distributed.sharded import on_cpu, settings
from tests.lupi_skd.training import make_trainer


class Spoil(TrainerCallback):
    """Spoils what the student says on process 1 alone; its weights stay whole, since another backend shares them."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if args.process_index == 1:
            model.get_output_embeddings().register_forward_hook(lambda *call: call[-1] * float("nan"))


def main() -> None:
    folder, backend = sys.argv[1:]
    if backend == "fsdp2":
        os.environ["ACCELERATE_USE_CPU"] = "false"  # with which accelerate has no FSDP
    with on_cpu(backend):
        config = {f"config_{key}": value for key, value in settings(backend).items()}
        trainer, _ = make_trainer(Path(folder), config_max_steps=4, **config)
        print(trainer.backend)
        trainer.add_callback(Spoil())
        trainer.train()


if __name__ == "__main__":
    leave(main)
