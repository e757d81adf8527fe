"""Checkpoints that are whole or do not count: sealed by a manifest that is written last.

A checkpoint is a folder that is filled file by file; whatever ends the process on the way leaves a part of it behind,
with a name like any other's. The manifest lists every file with its size and is put in place by one rename, after all
processes have written. What has none, or does not agree with it, is not resumed from.
"""

import json
import logging
import os
import re
import shutil
from pathlib import Path

from transformers.trainer_utils import rotate_checkpoints


logger = logging.getLogger(__name__)

MANIFEST = "checkpoint_manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is there with all of its text, or not at all."""
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def seal(folder: str | Path) -> None:
    """Declare a checkpoint whole, as it stands: its files and their sizes in bytes go into its manifest."""
    folder = Path(folder)
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    files.pop(MANIFEST, None)
    write_atomically(folder / MANIFEST, json.dumps({"files": files}, indent=1))


def flaw(folder: str | Path) -> str | None:
    """What a checkpoint lacks to be whole, in words; `None` if it lacks nothing."""
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}: its writing was cut off"
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    return None


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """The whole checkpoint with the largest step, or `None`; later ones that are not whole are named in a warning."""
    folders = [p for p in Path(output_dir).glob("checkpoint-*") if _NAME.fullmatch(p.name)]
    for folder in sorted(folders, key=lambda p: int(_NAME.fullmatch(p.name)[1]), reverse=True):
        reason = flaw(folder)
        if reason is None:
            return str(folder)
        logger.warning(f"{folder} is not resumed from: {reason}.")
    return None


def find_checkpoint(resume: str | bool | None, output_dir: str | Path) -> str | None:
    """The folder to resume from.

    Args:
        resume: a checkpoint's path; `True` (or "true") for the last whole one in `output_dir`, if there is any;
            `None` or `False` for a run from the beginning.
        output_dir: where the run's checkpoints are.

    Raises:
        ValueError: the path is not that of a whole checkpoint; the message says what is wrong with it.
    """
    if isinstance(resume, str) and resume.lower() in ("true", "false"):
        resume = resume.lower() == "true"
    if resume is None or resume is False or resume == "":
        return None
    if resume is True:
        folder = last_whole_checkpoint(output_dir)
        if folder is None:
            logger.warning(f"{output_dir} has no whole checkpoint: the run starts from the beginning.")
        return folder
    reason = flaw(resume)
    if reason is not None:
        raise ValueError(f"cannot resume from {resume}: {reason}")
    return str(resume)


class SealedCheckpoints:
    """For a [`~transformers.Trainer`]: writes only sealed checkpoints, and resumes only from such.

    Older checkpoints are removed (`save_total_limit`) when the new one has been sealed, never before.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As the parent's; `True` resumes from the last whole checkpoint and starts anew where there is none.

        Raises:
            ValueError: a path that is not a whole checkpoint's.
        """
        folder = find_checkpoint(resume_from_checkpoint, self.args.output_dir)
        return super().train(folder, *args, **kwargs)

    def _save_checkpoint(self, model, trial):
        run_dir = self._get_output_dir(trial=trial)
        folder = Path(run_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():
            shutil.rmtree(folder)  # of a run that was cut off here
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
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
