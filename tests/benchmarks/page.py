"""How soon the page of a run opens in headless Chromium: `python -m tests.benchmarks.page`.

A run with 1,000 rollouts of 60 tokens, the longest of 1,000; milliseconds from the start of the navigation until the
page is laid out.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from lupi_trainer.inspection import read_run, write_page
from tests.inspection.runs import make_run
from tests.inspection.test_page import browse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = read_run(make_run(folder / "run", rollouts=1000, tokens=60, longest=1000))
        page = write_page(run, folder / "page.html")
        script = "document.body.offsetHeight; return performance.now();"
        times = [browse(folder, page, script) for _ in range(args.repeats)]
        size = page.stat().st_size / 2**20
    print(
        f"1,000 rollouts, {size:.1f} MiB: open in "
        f"{statistics.median(times):.0f} ms, median of {args.repeats} ({min(times):.0f} to {max(times):.0f})"
    )


if __name__ == "__main__":
    main()
