"""The machine that tests run on, in words; and the numerical tests, computed as other machines would.

    python -m tests.machines [NAME=VALUE ...]

runs the tests that `conftest.py` marks as numerical, but for slow and distributed ones, once for each of `SETTINGS`
(or for those that are named), one after another, and prints a row for each.
"""

import os
import platform
import random
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "bitsandbytes", "numpy")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
# of the environment: what has a say in how numbers come about
VARIABLES = re.compile(
    r"(ATEN|ONEDNN|DNNL|MKL|OMP|KMP|GOMP|OPENBLAS|TORCH|CUDA|CUBLAS)_|TEST_(THREADS|SHUFFLE)$|PYTHONHASHSEED$"
)

LEFT_OUT = ("slow", "distributed", "gpu", "browser", "vllm", "served", "lab", "real")
TESTS = " and not ".join(("numerical", *LEFT_OUT))
SETTINGS = (
    {},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ATEN_CPU_CAPABILITY": "avx512"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    {"MKL_CBWR": "COMPATIBLE"},
    {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    {"TEST_THREADS": "2"},
    {"PYTHONHASHSEED": "1"},
    {"TEST_SHUFFLE": str(random.randrange(1000))},
)
NEEDED = {"avx2": "avx2", "avx512": "avx512f"}  # torch believes what it is told, and ends on an unknown instruction


def processor() -> tuple[str, list[str]]:
    """Its name, and which of `FLAGS` it has; where there is no /proc/cpuinfo, none is known."""
    info = Path("/proc/cpuinfo")
    fields = dict(re.findall(r"^(.+?)\s*: (.*)$", info.read_text(), re.MULTILINE)) if info.exists() else {}
    known = fields.get("flags", "").split()
    return fields.get("model name") or platform.processor() or "unknown", [flag for flag in FLAGS if flag in known]


def installed(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of those that are there."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe() -> list[str]:
    """What the report of a failure has to say first: lines on processor, versions, kernels and environment."""
    import torch

    name, flags = processor()
    kernels = [kind for kind in ("mkl", "mkldnn") if getattr(torch.backends, kind).is_available()]
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    chosen = [f"{key}={value}" for key, value in sorted(os.environ.items()) if VARIABLES.match(key)]
    return [
        ", ".join([f"processor: {name} ({platform.machine()})", f"{os.cpu_count()} cores", " ".join(flags), *gpu]),
        "versions: " + ", ".join(f"{package} {number}" for package, number in installed(PACKAGES).items()),
        f"kernels: {torch.backends.cpu.get_cpu_capability()} {' '.join(kernels)}; threads: {torch.get_num_threads()}",
        f"environment: {' '.join(chosen)}",
    ]


def run(setting: dict[str, str]) -> tuple[str, list[str]]:
    """(passed, failed and seconds as a row, the lines that name what failed) of the numerical tests."""
    lacking = [NEEDED[value] for value in setting.values() if value in NEEDED and NEEDED[value] not in processor()[1]]
    if lacking:
        return f"not run: the processor has no {lacking[0]}", []
    began = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", "-m", TESTS]
    lines = subprocess.run(command, env=os.environ | setting, capture_output=True, text=True).stdout.splitlines()
    counts = {
        kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|error)", lines[-1] if lines else "")
    }
    failed = counts.get("failed", 0) + counts.get("error", 0)
    wrong = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if not counts.get("passed"):
        wrong.append("ERROR: no test passed\n" + "\n".join(lines[-20:]))
    return f"{counts.get('passed', 0):6} {failed:6} {time.perf_counter() - began:7.0f}", wrong


def main(names: list[str]) -> int:
    settings = [dict([name.split("=", 1)]) for name in names] or SETTINGS
    print("\n".join(describe()[:2]))
    print(f"{'setting':32} passed failed seconds", flush=True)
    all_passed = True
    for setting in settings:
        name = " ".join(f"{key}={value}" for key, value in setting.items()) or "as it is"
        row, wrong = run(setting)
        print("\n".join([f"{name:32} {row}", *wrong]), flush=True)
        all_passed = all_passed and not wrong
    return not all_passed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
