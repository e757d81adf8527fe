"""The losses that a resumed run reports: those of the unbroken one, over all steps and since the last log."""

import json
import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .private import TrainerHooks


logger = logging.getLogger(__name__)

STATE_FILE = "loss_state_{process}.json"


def read_state(checkpoint: str | Path, file: str, process: int) -> dict[str, Any] | None:
    """What a process has left in a checkpoint in `file` (with the place `{process}`); of a run of fewer processes the
    first one's, and `None` where there is none.

    Raises:
        ValueError: it is damaged; the message names the file.
    """
    paths = [Path(checkpoint) / file.format(process=number) for number in (process, 0)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError(f"expected an object, found {type(state).__name__}")
        return state
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): go on from an earlier checkpoint, by --resume_from_checkpoint FOLDER"
        ) from error


@contextmanager
def understood(checkpoint: str | Path, file: str) -> Generator[None]:
    """Inside, a run takes over what [`read_state`] has read.

    Raises:
        ValueError: something is missing in it, or of another type; the message names the file.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        path, what = Path(checkpoint) / file, " ".join(repr(error).split())[:200]
        raise ValueError(
            f"{path} is not what a run writes ({what}): go on from an earlier checkpoint, by "
            "--resume_from_checkpoint FOLDER"
        ) from error


class LossTotals(TrainerHooks):
    """For a [`~transformers.Trainer`]: a checkpoint holds the sums that its logs are means of, each process's own.

    Without them a resumed run logs the mean of its own steps alone, and as `train_loss` their sum over all steps.
    """

    args: Any
    state: Any
    _total_is_known = False  # the losses of all steps since the run began, also of those before it was resumed
    _state_is_read = False  # of `resumed_from`
    resumed_from: str | None = None  # the checkpoint

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        self._total_is_known = self._state_is_read = False
        self.resumed_from = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs:
            if self.resumed_from is not None and not self._state_is_read:
                # it was cut off behind its last step, and the parent reads no state where it has no step to train
                self.load_process_state(self.resumed_from)
                self.loss_total += self.loss_since_log.item()  # as the parent has done, before there was any
            if self._total_is_known:
                logs["train_loss"] = self.loss_total / self.state.global_step  # the parent divides by its own steps
        super().log(logs, start_time)

    def totals(self) -> dict[str, Any]:
        """What a checkpoint holds, for JSON."""
        return {"step": self.last_logged_step, "since_log": self.loss_since_log.item(), "total": self.loss_total}

    def restore_totals(self, totals: dict[str, Any]) -> None:
        """Go on from [`totals`]."""
        self.last_logged_step = totals["step"]
        self.loss_since_log.fill_(totals["since_log"])
        self.loss_total, self._total_is_known = totals["total"], True

    # The parent writes and reads the random state of every process, at the right moments: this belongs beside it.

    def save_process_state(self, output_dir: str) -> None:
        super().save_process_state(output_dir)
        path = Path(output_dir) / STATE_FILE.format(process=self.args.process_index)
        path.write_text(json.dumps(self.totals()), encoding="utf-8")

    def load_process_state(self, checkpoint: str | None) -> None:
        super().load_process_state(checkpoint)
        if checkpoint is None:
            return
        self._state_is_read = True
        state = read_state(checkpoint, STATE_FILE, self.args.process_index)
        if state is None:
            logger.warning(f"{checkpoint} holds no sums of losses: the logged means begin anew.")
            return
        with understood(checkpoint, STATE_FILE.format(process=self.args.process_index)):
            self.restore_totals(state)
