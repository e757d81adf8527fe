"""A vLLM server on this machine's CPU, started and stopped."""

import os
import signal
import socket
import subprocess
import time

import httpx

from lupi_trainer.lab import resolve_model
from lupi_trainer.teachers.vllm_scores import Scores
from tests.conftest import ROOT, VLLM


class Server:
    """`vllm serve` with a model and our middleware on a free port, as `teacher`, and `more` flags.

    What it prints goes to a file.
    """

    def __init__(self, log, model="lab:teacher", port=None, max_logprobs=568, length=512, more=()):
        if port is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        self.port, self.url, self.log = port, f"http://127.0.0.1:{port}", log
        options = {
            "host": "127.0.0.1",
            "port": port,
            "dtype": "float32",
            "max-model-len": length,
            "served-model-name": "teacher",
            "max-logprobs": max_logprobs,
            "middleware": f"{Scores.__module__}.{Scores.__name__}",
        }
        command = [VLLM, "serve", resolve_model(model), "--enforce-eager"]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        command += more
        settings = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                command, env={**os.environ, **settings}, stdout=out, stderr=out, start_new_session=True
            )

    def wait(self, seconds=240):
        """Until it answers; fails with the end of its log where it does not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx.get(self.url + "/health", timeout=2).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        self.stop(signal.SIGKILL)
        raise AssertionError("the server did not come up:\n" + open(self.log, errors="replace").read()[-3000:])

    def stop(self, how=signal.SIGTERM):
        """Ends the server and the processes that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, how)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
