"""A long run of two processes that is killed again and again is the unbroken run, and takes no more and more memory.

`TEST_STEPS` in the environment is how many steps it has; `TEST_KILL_AFTER` after how many seconds it is killed, about.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest


pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]
STEPS, KILL_AFTER = int(os.environ.get("TEST_STEPS", 2000)), float(os.environ.get("TEST_KILL_AFTER", 50))
ROOT = Path(__file__).parents[2]
SETTINGS = f"""
    --config recipes/lab/lupi_skd/config_full.yaml --accelerate_config multi_cpu --max_steps {STEPS}
    --per_device_train_batch_size 2 --max_completion_length 24 --logging_steps 1 --logging_first_step true
    --eval_strategy no --save_strategy steps --save_steps {max(5, STEPS // 40)} --save_total_limit 2
    --record_rollouts 200 --resume_from_checkpoint true --disable_tqdm true
""".split()
TIMES = ("step_time", "runtime", "per_second")


def memory(process: psutil.Process) -> int:
    """Bytes that a process and all that it started hold."""
    held = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            held += one.memory_info().rss
        except psutil.NoSuchProcess:
            pass
    return held


def train(folder: Path, kill_after: float | None = None) -> tuple[int, list[int]]:
    """(exit status, memory each second); after `kill_after` seconds the command alone is killed, and its processes end
    by themselves."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lupi_trainer.cli", "skd", *SETTINGS, "--output_dir", str(folder)]
    with open(folder.with_suffix(".log"), "a") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        watched, begun, held = psutil.Process(process.pid), time.monotonic(), []
        started: dict[int, psutil.Process] = {}
        while process.poll() is None:
            started |= {one.pid: one for one in watched.children(recursive=True)}
            held.append(memory(watched))
            if kill_after is not None and time.monotonic() - begun > kill_after:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                _, left = psutil.wait_procs(started.values(), timeout=30)
                assert not left, f"{left} outlive the command"
                break
            time.sleep(1)
    return process.wait(), held


def logged(folder: Path) -> list[dict]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [{key: value for key, value in entry.items() if not key.endswith(TIMES)} for entry in log]


def test_killed_about_each_minute_it_is_the_unbroken_run(tmp_path):
    whole, killed, moments, kills = tmp_path / "whole", tmp_path / "killed", random.Random(0), 0
    begun = time.monotonic()
    status, held = train(whole)
    seconds = time.monotonic() - begun
    assert status == 0, (tmp_path / "whole.log").read_text()[-2000:]
    settled, last = max(held[len(held) // 4 : len(held) // 2]), max(held[-(len(held) // 4) :])
    while True:
        status, _ = train(killed, KILL_AFTER * moments.uniform(0.6, 1.4))
        if status != -signal.SIGKILL:
            break
        kills += 1
    assert status == 0, (tmp_path / "killed.log").read_text()[-2000:]
    log = logged(killed)
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, STEPS + 1))
    assert log == logged(whole)
    for file in ("model.safetensors", "rollouts.jsonl"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
    print(
        f"\n{STEPS} steps in {seconds:.0f} s; {kills} kills; {settled / 2**20:.0f} MiB, at the end {last / 2**20:.0f}"
    )
    assert kills >= 2 and last < 1.03 * settled + 2**24
