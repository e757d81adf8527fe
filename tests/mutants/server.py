"""Runs pytest in forks of a process that has imported torch and the libraries around it, and nothing of this package.

    PYTHONPATH=ROOT python server.py    # in ROOT, the tree that is tested

A line of JSON on standard input, `{"arguments": [...], "seconds": S, "log": PATH}`, is answered by one on standard
output: pytest's exit status (128 + N after signal N), or null if it was ended after S seconds, and the seconds taken.
"""

import gc
import json
import os
import signal
import sys
import time


os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", OMP_NUM_THREADS="1")  # read when imported
sys.dont_write_bytecode = True
os.environ["PYTHONDONTWRITEBYTECODE"] = (
    "1"  # a mutant as long as the last one, within a second, has its bytecode's key
)

import datasets  # noqa: E402, F401
import hypothesis  # noqa: E402, F401
import peft  # noqa: E402, F401
import pytest  # noqa: E402
import torch  # noqa: E402, F401
import transformers.models.auto.modeling_auto  # noqa: E402, F401
import trl.trainer.distillation_trainer  # noqa: E402, F401


def child(arguments: list[str], log: str) -> None:
    """Never returns."""
    os.setsid()  # so that what it starts can be ended with it
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    status = 70
    try:
        status = int(pytest.main(arguments))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    gc.freeze()  # forks need not look through what is imported here
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        process = os.fork()
        if not process:
            child(request["arguments"], request["log"])
        status = None
        while time.monotonic() - started < request["seconds"]:
            ended, code = os.waitpid(process, os.WNOHANG)
            if ended:
                exited = os.waitstatus_to_exitcode(code)
                status = exited if exited >= 0 else 128 - exited
                break
            time.sleep(0.05)
        try:
            os.killpg(process, signal.SIGKILL)  # and what it has left running
        except ProcessLookupError:
            pass
        if status is None:
            os.waitpid(process, 0)
        print(json.dumps({"status": status, "seconds": time.monotonic() - started}), flush=True)


if __name__ == "__main__":
    serve()
