"""What a run remembers beside its weights, so that it goes on after a kill as if nothing had happened.

Transformers' checkpoints hold weights, optimizer, scheduler, random numbers and the step. Here is the rest: the order
of the data as a function of seed and epoch alone, what the gamma policy has learned, the running totals, and what was
measured since the last log.
"""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler

from ..data.teacher_names import RUN
from ..training.loss_totals import LossTotals, read_state, understood
from .config import LUPISKDConfig
from .metrics import RolloutTotals
from .recorder import RolloutRecorder
from .teachers import Teachers
from .token_means import TokenMeans


logger = logging.getLogger(__name__)

STATE_FILE = "rollout_state_{process}.json"


class EpochSampler(Sampler[int]):
    """A sampler's order as a function of (seed, epoch), whichever epochs have been read before.

    Args:
        sampler: draws its order from its `generator` (one that has none keeps its order).
        seed: of epoch 0; epoch e is drawn with `seed + e`.
        epoch: tells the epoch that is being read.
    """

    def __init__(self, sampler: Any, seed: int, epoch: Callable[[], int]):
        self.sampler, self.seed, self.epoch = sampler, seed, epoch

    def __iter__(self) -> Iterator[int]:
        if generator := getattr(self.sampler, "generator", None):
            generator.manual_seed(self.seed + self.epoch())
        yield from self.sampler

    def __len__(self) -> int:
        return len(self.sampler)


class ExactResume(LossTotals, TokenMeans):
    """For [`LUPISKDTrainer`]: a checkpoint holds all of the run's state, each process's own."""

    args: LUPISKDConfig
    train_dataset: Any
    _rollout_totals: dict[str, RolloutTotals]
    teachers: Teachers
    gains: torch.Tensor | None  # of `KnowledgeWeights`
    _recorder: RolloutRecorder | None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        if self._recorder is not None and isinstance(resume_from_checkpoint, str):
            state = read_state(resume_from_checkpoint, STATE_FILE, 0) or {}
            self._recorder.at_checkpoint = state.get("recorded")
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def train_sampler(self, dataset):
        return EpochSampler(super().train_sampler(dataset), self.args.seed, lambda: int(self.state.epoch or 0))

    def _data_order(self) -> dict[str, int | bool | None]:
        """Everything that the order of the records depends on."""
        args = self.args
        return {
            "seed": args.seed,
            "shuffle_dataset": args.shuffle_dataset,
            "records": len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None,
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "processes": args.world_size,
        }

    # The parent writes and reads the random state of every process, at the right moments: this belongs beside it.

    def save_process_state(self, output_dir: str) -> None:
        super().save_process_state(output_dir)
        state = {
            "data_order": self._data_order(),
            "totals": {mode: asdict(totals) for mode, totals in self._rollout_totals.items()},
            "recorded": None if self._recorder is None else self._recorder.written,
            "gamma_policies": {
                each.name: each.gamma_policy.state() for each in self.teachers if hasattr(each.gamma_policy, "state")
            },
            "frozen_student": self.teachers.frozen_student,
            "since_last_log": {
                "tokens": None if (sums := self.token_sums["train"]) is None else sums.tolist(),
                "gold": None if (sums := self.token_sums["gold"]) is None else sums.tolist(),
                "gains": None if self.gains is None else self.gains.tolist(),
                "metrics": self.metric_lists["train"],
            },
        }
        path = Path(output_dir) / STATE_FILE.format(process=self.args.process_index)
        path.write_text(json.dumps(state), encoding="utf-8")

    def load_process_state(self, checkpoint: str | None) -> None:
        super().load_process_state(checkpoint)
        if checkpoint is None:
            return
        state = read_state(checkpoint, STATE_FILE, self.args.process_index)
        if state is None:
            logger.warning(f"{checkpoint} holds no rollout state: totals, gamma policy and open means start anew.")
            return
        frozen = state.get("frozen_student"), self.teachers.frozen_student
        if all(frozen) and frozen[0] != frozen[1]:
            raise ValueError(
                "resumed with another frozen student: the run began with other weights than `model_name_or_path` (or "
                "the model that was passed) has now, and its base records are taught by those. Name the student that "
                "the run began with; the checkpoint's weights are loaded into it"
            )
        with understood(checkpoint, STATE_FILE.format(process=self.args.process_index)):
            self._take_over(state)

    def _take_over(self, state: dict[str, Any]) -> None:
        now = self._data_order()
        changed = [
            f"{key} was {value!r}, is {now[key]!r}" for key, value in state["data_order"].items() if value != now[key]
        ]
        if changed:
            logger.warning(
                f"resumed with another order of the data ({'; '.join(changed)}): the run goes on, not exactly."
            )
        self._rollout_totals = {mode: RolloutTotals(**totals) for mode, totals in state["totals"].items()}
        policies = state.get("gamma_policies", {RUN: state.get("gamma_policy")})
        for each in self.teachers:
            if policies.get(each.name) is not None and hasattr(each.gamma_policy, "restore"):
                each.gamma_policy.restore(policies[each.name])
        open_interval = state["since_last_log"]
        for name, values in open_interval["metrics"].items():
            self.metric_lists["train"][name] = values
        for mode, name in (("train", "tokens"), ("gold", "gold")):
            if (sums := open_interval.get(name)) is not None:
                self.token_sums[mode] = torch.tensor(sums, dtype=torch.float64, device=self.args.device)
        if (gains := open_interval.get("gains")) is not None:
            self.gains = torch.tensor(gains, dtype=torch.float64, device=self.args.device)
