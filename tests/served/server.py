"""A llama.cpp server on this machine's CPU, started and stopped."""

import subprocess
import time
from pathlib import Path

import httpx


PYTHON = Path(__file__).parents[2] / ".venv-served" / "bin" / "python"


class LlamaServer:
    """llama.cpp with a GGUF file on a free port; what it prints goes to a file.

    Args:
        gguf: the file.
        log: what it prints.
        template: a chat template in place of the file's own.
        length: tokens of a conversation at most.
    """

    def __init__(self, gguf: Path, log: Path, template: str = "", length: int = 1024):
        with open(log, "wb") as out:
            command = [str(PYTHON), str(Path(__file__).with_name("llama_cpp.py")), str(gguf), str(length), template]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out)
        said = b""
        while not said.startswith(b"http"):
            if not (said := self.process.stdout.readline()):
                raise AssertionError("the server did not come up:\n" + log.read_text(errors="replace")[-3000:])
        self.url = said.decode().strip()
        for _ in range(120):
            if httpx.get(f"{self.url}/health").status_code == 200:
                return
            time.sleep(0.25)
        raise AssertionError("the server does not become ready")

    def stop(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
