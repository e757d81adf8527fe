"""The losses that a resumed run reports: those of the unbroken one, over all steps and since the last log."""

import json
import logging
from pathlib import Path
from typing import Any

from .private import TrainerHooks


logger = logging.getLogger(__name__)

STATE_FILE = "loss_state_{process}.json"


class LossTotals(TrainerHooks):
    """For a [`~transformers.Trainer`]: a checkpoint holds the sums that its logs are means of, each process's own.

    Without them a resumed run logs the mean of its own steps alone, and as `train_loss` their sum over all steps.
    """

    args: Any
    state: Any
    _total_is_known = False  # the losses of all steps since the run began, also of those before it was resumed

    def train(self, *args: Any, **kwargs: Any):
        self._total_is_known = False
        output = super().train(*args, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._total_is_known and "train_loss" in logs:
            logs["train_loss"] = self.loss_total / self.state.global_step  # the parent divides by its own steps
        super().log(logs, start_time)

    # The parent writes and reads the random state of every process, at the right moments: this belongs beside it.

    def save_process_state(self, output_dir: str) -> None:
        super().save_process_state(output_dir)
        state = {"step": self.last_logged_step, "since_log": self.loss_since_log.item(), "total": self.loss_total}
        path = Path(output_dir) / STATE_FILE.format(process=self.args.process_index)
        path.write_text(json.dumps(state), encoding="utf-8")

    def load_process_state(self, checkpoint: str | None) -> None:
        super().load_process_state(checkpoint)
        if checkpoint is None:
            return
        paths = [Path(checkpoint) / STATE_FILE.format(process=i) for i in (self.args.process_index, 0)]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            logger.warning(f"{checkpoint} holds no sums of losses: the logged means begin anew.")
            return
        state = json.loads(path.read_text(encoding="utf-8"))
        self.last_logged_step = state["step"]
        self.loss_since_log.fill_(state["since_log"])
        self.loss_total, self._total_is_known = state["total"], True
