"""The notebook, run from top to bottom as a reader does, with fewer steps and questions."""

import ast
import functools
import json
import os
import time

import nbformat
import pytest
from nbclient import NotebookClient

from lupi_trainer import LUPISKDConfig
from lupi_trainer.inspection import read_run
from lupi_trainer.lab import load_lab_records
from lupi_trainer.scripts.recipe_files import recipes_dir
from tests import forks


NOTEBOOK = recipes_dir() / "notebooks" / "train_lupi_skd.ipynb"


class Kernel:
    """A fork that Jupyter takes for the kernel's process that it has started."""

    stdin = stdout = stderr = None

    def __init__(self, folder, command: list[str], cwd: str, env: dict[str, str], **streams):
        self.process = forks.launch(*command[1:], folder=folder, cwd=cwd, env=env)
        self.pid, self.kill, self.terminate = self.process.pid, self.process.kill, self.process.terminate
        while os.getpgid(self.pid) != self.pid:  # Jupyter ends all of a kernel's group
            time.sleep(0.01)

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = next(cell for cell in notebook.cells if "STEPS = 200" in cell.source)
    settings.source = settings.source.replace("STEPS = 200", "STEPS = 4").replace('"lab:probes"', '"probes.json"')
    (tmp_path / "probes.json").write_text(json.dumps(load_lab_records("lab:probes")[::45]))
    launch_kernel = functools.partial(Kernel, str(tmp_path))
    monkeypatch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", launch_kernel)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    text = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    assert "--- the teacher reads" in text and "round 0: drafted" in text and "the teacher puts" in text
    assert "closed_book_lenient: 0.0% before" in text
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    run = read_run(tmp_path / "runs" / "notebook")
    assert run.points("loss")[-1][0] == 4 and run.rollouts
    assert (run.path / "inspect.html").is_file() and (run.path / "model.safetensors").is_file()


def test_the_cell_for_two_gpus_is_a_configuration():
    """Not run here: its keys and its data are checked."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (text,) = [cell.source for cell in notebook.cells if "cuda:1" in cell.source]
    names: dict = {}
    exec(compile(ast.parse(text.split("```python\n")[1].split("```")[0]), "cell", "exec"), names)
    settings = names["SETTINGS"] | {"report_to": "none", "bf16": False, "use_cpu": True}
    assert LUPISKDConfig(**settings).teacher_device == "cuda:1"
    root = recipes_dir().parent
    for path in (names["RECORDS"], names["PROBES"], names["SETTINGS"]["few_shot_examples"]):
        assert (root / path).is_file()


def test_the_notebook_is_kept_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")
