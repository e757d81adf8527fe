"""`python -m tests.benchmarks.run`: one table, every figure a ratio to a peer of the same run.

--only a,b      which figures (a to h; default all)
--repeats 3     turns of every contender, after one to warm up; medians are shown
--device cuda   0.6B and 8B in bfloat16, 32 rows; default: 2M and 40M in float32 on the CPU, 8 rows
--json FILE     where the figures are written (tests/benchmarks/results.json), each in place of its like from before
"""

import argparse
import json
import os
import platform
from datetime import date
from pathlib import Path

import torch
import transformers

from tests.benchmarks.figures import FIGURES
from tests.benchmarks.measure import Others
from tests.benchmarks.setting import CPU, CUDA


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(FIGURES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("results.json"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()

    machine = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} CPU threads"
    print(f"{machine}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"{'':2} {'figure':62} {'measured':>9} {'wanted':>9}  {'seconds, median'}")
    run = {
        "device": arguments.device,
        "date": date.today().isoformat(),
        "machine": machine,
        "platform": platform.platform(),
        "torch": torch.__version__,
        "repeats": arguments.repeats,
    }
    for name in arguments.only.split(","):
        others, rows = Others(), []
        for row in FIGURES[name](CUDA if arguments.device == "cuda" else CPU, arguments.repeats):
            rows.append({"name": name, **row, "others": others.share(), **run})
            wanted = f"{row['sense']} {row['wanted']:.2f}" if row.get("wanted") else ""
            met = "" if not wanted else "  met" if _met(row) else "  MISSED"
            times = ", ".join(f"{k} {v:.2f}" for k, v in row["seconds"].items())
            print(f"{name:2} {row['figure']:62} {row['ratio']:8.2f}x {wanted:>9}  {times}{met}", flush=True)
        if (share := others.share()) is not None and share > 0.02:
            print(
                f"   (other processes used {share:.0%} of the machine meanwhile: distrust this)",
                flush=True,
            )
        _keep(arguments.json, arguments.device, name, rows)


def _keep(path: Path, device: str, name: str, rows: list[dict]) -> None:
    """Puts a figure's rows into the file, in place of those of the same figure and device."""
    known = json.loads(path.read_text())["figures"] if path.exists() else []
    known = [row for row in known if (row["device"], row["name"]) != (device, name)]
    figures = sorted(known + rows, key=lambda row: (row["device"], row["name"]))
    path.write_text(json.dumps({"figures": figures}, indent=1) + "\n")


def _met(row: dict) -> bool:
    return row["ratio"] >= row["wanted"] if row["sense"] == ">=" else row["ratio"] <= row["wanted"]


if __name__ == "__main__":
    main()
