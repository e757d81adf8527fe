"""Checkpoints that are complete or do not count: sealed by a manifest that is written last.

A checkpoint is a folder that is filled file by file; whatever ends the process on the way leaves a part of it behind,
with a name like any other's. The manifest lists every file with its size and is put in place by one rename, after all
processes have written. What has none, or does not agree with it, is not resumed from.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from transformers.trainer_utils import rotate_checkpoints

from ..data.files import write_atomically
from .full_disk import DiskFull, is_full
from .manifest import MANIFEST, checksums, flaw
from .private import TrainerHooks, wrap_in_training
from .run_lock import RunTaken, holding, require_held


logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: str | Path) -> None:
    """Declare a checkpoint complete as it is now: its files, their sizes in bytes and checksums go into its manifest.

    All of it is on the disk before the manifest is, so that no loss of power leaves a manifest without its files.
    """
    folder = Path(folder)
    paths = sorted(folder.rglob("*"))
    for path in [*paths, folder]:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    sealed = {str(p.relative_to(folder)): p for p in paths if p.is_file() and p != folder / MANIFEST}
    sizes = {name: path.stat().st_size for name, path in sealed.items()}
    sums = dict(zip(sealed, checksums(list(sealed.values()))))
    write_atomically(folder / MANIFEST, json.dumps({"files": sizes, "crc32": sums}, indent=1))


def last_complete_checkpoint(output_dir: str | Path, content: bool = False) -> str | None:
    """The complete checkpoint with the largest step, or `None`; later, incomplete ones are named in a warning.

    Args:
        output_dir: of the run.
        content: as for [`flaw`].
    """
    steps = {p: int(m[1]) for p in Path(output_dir).glob("checkpoint-*") if (m := _NAME.fullmatch(p.name))}
    for folder in sorted(steps, key=steps.__getitem__, reverse=True):
        reason = flaw(folder, content)
        if reason is None:
            return str(folder)
        logger.warning(f"{folder} is not resumed from: {reason}.")
    return None


def find_checkpoint(resume: str | bool | None, output_dir: str | Path) -> str | None:
    """The folder to resume from.

    Args:
        resume: a checkpoint's path; `True` (or "true") for the last complete one in `output_dir`, if there is any;
            `None` or `False` for a run from the beginning.
        output_dir: where the run's checkpoints are.

    Raises:
        ValueError: the path is not that of a complete checkpoint; the message says what is wrong with it.
    """
    if isinstance(resume, str) and resume.lower() in ("true", "false"):
        resume = resume.lower() == "true"
    if resume is None or resume is False or resume == "":
        return None
    if resume is True:
        folder = last_complete_checkpoint(output_dir, content=True)
        if folder is None:
            logger.warning(f"there is no complete checkpoint in {output_dir} to resume from: the run starts at step 0")
        return folder
    reason = flaw(resume, content=True)
    if reason is not None:
        raise ValueError(f"cannot resume from {resume}: {reason}")
    return str(resume)


def agree_on_checkpoint(accelerator: Any, resume: str | bool | None, output_dir: str | Path) -> str | None:
    """[`find_checkpoint`] by the main process, for all: machines that share no disk must not begin at several steps.

    Raises:
        ValueError: as `find_checkpoint`, or a process does not see all of the checkpoint; on every process.
    """
    if accelerator.num_processes == 1:
        return find_checkpoint(resume, output_dir)
    found: list[str | None] = [None, None]  # the folder, what is wrong
    if accelerator.is_main_process:
        try:
            found[0] = find_checkpoint(resume, output_dir)
        except ValueError as error:
            found[1] = str(error)
    broadcast_object_list(found)
    folder, wrong = found
    if wrong is not None:
        raise ValueError(wrong)
    if folder is None:
        return None
    for process, reason in enumerate(gather_object([flaw(folder)])):
        if reason is not None:
            raise ValueError(
                f"cannot resume from {folder}: for process {process}, {reason}. All processes must see one output_dir"
            )
    return folder


def put_aside(output_dir: str | Path, resumed: str | None) -> None:
    """Move complete checkpoints that a run would not come from out of its way, so that it is never resumed from them.

    They are those with a larger step than the one that is resumed from, or all where that is elsewhere or none.

    Args:
        output_dir: of the run.
        resumed: the checkpoint that it begins with, if any.
    """
    output_dir = Path(output_dir)
    inside = resumed is not None and Path(resumed).resolve().parent == output_dir.resolve()
    step = int(name[1]) if inside and (name := _NAME.fullmatch(Path(resumed).resolve().name)) else -1
    folders = [p for p in output_dir.glob("checkpoint-*") if (name := _NAME.fullmatch(p.name)) and int(name[1]) > step]
    folders = [folder for folder in folders if flaw(folder) is None]
    if not folders:
        return
    number, aside = 1, output_dir / "checkpoints.previous"
    while aside.exists():
        number += 1
        aside = output_dir / f"checkpoints.previous-{number}"
    aside.mkdir()
    for folder in folders:
        folder.rename(aside / folder.name)
    names = ", ".join(sorted(folder.name for folder in folders))
    logger.warning(f"checkpoints that this run does not come from ({names}) are out of the way now, in {aside}.")


def what_is_whole(output_dir: str | Path, step: int) -> str:
    """What is said of a run whose disk had no room at a step."""
    said = f"the disk of {output_dir} has no room left, at step {step}"
    folder = last_complete_checkpoint(output_dir)
    if folder is None:
        return f"{said}: no checkpoint is complete. Make room, and begin anew"
    return (
        f"{said}: {folder} is complete, and nothing after it. Make room; the same command with "
        "--resume_from_checkpoint true goes on from there"
    )


@contextmanager
def room_for(trainer: Any) -> Generator[None]:
    """Inside, a trainer writes into its folder.

    Raises:
        DiskFull: in place of whatever a library raises where the disk has no room.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFull) or not is_full(error):
            raise
        raise DiskFull(what_is_whole(trainer.args.output_dir, trainer.state.global_step)) from error


def tied_to_loaded(model: Any, missing: list[str]) -> set[str]:
    """Those of the names that a checkpoint lacks whose weights came with another name: they are one parameter."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    loaded = {id(weight) for name, weight in weights.items() if name not in set(missing)}
    return {name for name in missing if name in weights and id(weights[name]) in loaded}


@contextmanager
def only_run(trainer: Any) -> Generator[None]:
    """Inside, no other run writes into a trainer's folder; the main process holds its lock, for all.

    Raises:
        RunTaken: another run does, which the message names; on every process.
    """
    with ExitStack() as stack:
        wrong: list[str | None] = [None]
        if trainer.is_world_process_zero():
            try:
                stack.enter_context(holding(trainer.args.output_dir))
            except RunTaken as error:
                wrong[0] = str(error)
        if trainer.accelerator.num_processes > 1:
            broadcast_object_list(wrong)
        if wrong[0] is not None:
            raise RunTaken(wrong[0])
        yield


class SealedCheckpoints(TrainerHooks):
    """For a [`~transformers.Trainer`]: writes only sealed checkpoints, and resumes only from such.

    Older checkpoints are removed (`save_total_limit`) when the new one has been sealed, never before.
    """

    args: Any
    model: Any

    def say_what_is_missing(self, loaded: Any) -> None:
        tied = tied_to_loaded(self.accelerator.unwrap_model(self.model), loaded.missing_keys)
        missing = [name for name in loaded.missing_keys if name not in tied]
        super().say_what_is_missing(SimpleNamespace(missing_keys=missing, unexpected_keys=loaded.unexpected_keys))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As the parent's; `True` resumes from the last complete checkpoint and starts anew where there is none.

        Complete checkpoints in `output_dir` that the run does not come from are put aside.

        Raises:
            ValueError: a path that is not a complete checkpoint's, or one that not all processes see; a checkpoint
                with code in it.
            RunTaken: another run trains into `output_dir`.
            DiskFull: the disk has no room left; the message says what is whole.
        """
        with only_run(self), room_for(self):
            folder = agree_on_checkpoint(self.accelerator, resume_from_checkpoint, self.args.output_dir)
            if self.args.should_save:
                put_aside(self.args.output_dir, folder)
            self.accelerator.wait_for_everyone()
            wrap_in_training(self)
            try:
                return super().train(folder, *args, **kwargs)
            except UnpicklingError as error:
                more = (
                    "a file of it holds more than numbers, as no run writes it, or is damaged; no code of it was run"
                )
                raise ValueError(f"cannot resume from {folder}: {more}") from error

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """As the parent's; none where the run has all its steps: resumed there, the parent would take one more."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def save_checkpoint(self, model, trial) -> None:
        run_dir = self.run_dir(trial)
        if self.args.should_save:
            require_held(self.args.output_dir)
        folder = Path(run_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()  # of a run that was cut off here
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super().save_checkpoint(model, trial)
        except Exception as error:
            if is_full(error):
                shutil.rmtree(folder, ignore_errors=True)  # its part takes what room there is
            raise
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(folder)
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
