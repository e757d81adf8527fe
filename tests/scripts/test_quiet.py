"""A run's own lines are what is seen: of other libraries only what means something."""

import logging
import os
import subprocess
import sys
import warnings

import pytest

from lupi_trainer.scripts.quiet import MESSAGES, quiet_early


@pytest.mark.slow
def test_a_run_says_nothing_but_its_own_lines(tmp_path):
    args = "skd --config lab/lupi_skd/config_full.yaml --max_steps 1 --eval_strategy no --max_completion_length 4 "
    args += "--per_device_train_batch_size 2 --activation_checkpointing true --disable_tqdm true --report_to wandb "
    args += "--output_dir out"
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    env |= {"WANDB_SILENT": "true", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = [sys.executable, "-m", "lupi_trainer.cli", *args.split()]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True)
    sync = f"wandb sync {tmp_path}/out/wandb/offline-run-*"
    assert done.stderr.splitlines() == [
        f"wandb: no WANDB_API_KEY, so the run is logged offline; to send it later: {sync}",
    ]
    assert done.returncode == 0 and "Student saved to out" in done.stdout
    assert not any(word in done.stdout for word in ("FutureWarning", "UserWarning", "deprecated", "Failed"))
    assert list(tmp_path.glob("out/wandb/offline-run-*/*.wandb")) and not (tmp_path / "wandb").exists()


def test_other_warnings_stay(caplog, recwarn):
    quiet_early()
    ((name, beginnings),) = MESSAGES.items()
    caplog.set_level(logging.WARNING, "bitsandbytes")  # whatever other tests have left
    logging.getLogger(name).warning(beginnings[0] + ": why")
    logging.getLogger(name).warning("another line")
    assert [record.getMessage() for record in caplog.records] == ["another line"]
    warnings.simplefilter("always")
    quiet_early()
    for message in ("`gradient_checkpointing` is deprecated and", "`is_gradient_checkpointing` is deprecated", "x"):
        warnings.warn(message, FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in recwarn] == ["x"]
