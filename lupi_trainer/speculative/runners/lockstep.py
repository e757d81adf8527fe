"""The same number of forwards on every process, for models whose weights are sharded over them.

Every forward of such a model (FSDP, ZeRO-3) gathers weights from all processes, so that one forward more on one of
them waits for ever. Before a round all agree on its draft length, and before prompts are read on how many forwards
that takes; a process with less to do runs empty forwards, and none leaves before the last row of all has ended.
"""

from __future__ import annotations

import torch


class Lockstep:
    """Agrees with the other processes of a group, in one small all-reduce each time.

    Args:
        device: where the group's collectives run (a GPU for NCCL, the CPU for gloo).
        group: a process group; the default one if omitted.

    Example:

    ```python
    >>> from lupi_trainer.speculative import Lockstep

    >>> lockstep = Lockstep("cpu")  # for skd_rollout(..., lockstep=lockstep), on every process of the default group
    ```
    """

    together = True

    def __init__(self, device: torch.device | str = "cpu", group=None):
        self.device, self.group = device, group

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        largest = torch.tensor(number, device=self.device)
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=self.group)
        return int(largest)


class Alone:
    """No other process to agree with."""

    together = False

    def most(self, number: int) -> int:
        return number
