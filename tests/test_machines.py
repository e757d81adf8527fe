"""What a failing run says of the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .machines import describe, processor


ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_run_says_first_where_it_ran_and_says_it_again_if_it_fails(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import torch\ndef test_good():\n    assert torch.get_num_threads() == 2\ndef test_bad():\n    assert 0\n"
    )
    environment = os.environ | {"TEST_THREADS": "2", "ATEN_CPU_CAPABILITY": "default"}
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-n", "1", str(tmp_path)]
    lines = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout.splitlines()
    assert "1 failed, 1 passed" in lines[-1]
    here = [line for line in describe() if line.startswith(("processor", "versions"))]
    assert processor()[0] in here[0] and f"torch {torch.__version__}" in here[1]
    said = [line for line in lines if line.startswith(("processor:", "versions:", "kernels:", "environment:"))]
    assert said[:2] == here and said[:4] == said[4:] and lines.index(here[0]) < 10
    assert said[2].startswith("kernels: DEFAULT") and said[2].endswith("threads: 2")
    assert said[3].startswith("environment: ATEN_CPU_CAPABILITY=default") and "TEST_THREADS=2" in said[3]
