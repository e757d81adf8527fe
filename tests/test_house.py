"""The layout is the data flow: a folder imports only from those before it in CONTRIBUTING's list."""

import ast
import re
from pathlib import Path

import pytest

import lupi_trainer


ROOT = Path(lupi_trainer.__file__).parent
PAGE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
FOLDERS = re.findall(r"^\d+\. `(\w+)(?:/|\.py)`", PAGE, re.MULTILINE)
ENGINE = re.findall(r"^ +\d+\. `(\w+)/`", PAGE, re.MULTILINE)  # of `speculative/`
FILES = sorted(ROOT.rglob("*.py"))
KNOW_TRL = {"training", "lupi_skd", "kd_lora", "wmtp", "scripts"}


def imports(path: Path) -> set[str]:
    """Absolute names of everything that a file imports, wherever in it."""
    package = ["lupi_trainer", *path.relative_to(ROOT).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def part(path: Path, depth: int) -> str:
    return path.relative_to(ROOT).parts[depth].removesuffix(".py")


def backward(files: list[Path], order: list[str], inside: str) -> list[str]:
    """The imports of `files`, each in a folder of `order`, that lead to a later folder of the package `inside`."""
    depth, found = inside.count("."), []
    for path in files:
        allowed = order[: order.index(part(path, depth)) + 1]
        for name in imports(path):
            folder = name.removeprefix(f"{inside}.").split(".")[0]
            if name.startswith(f"{inside}.") and folder in order and folder not in allowed:
                found.append(f"{path.relative_to(ROOT)} imports {name}")
    return found


def test_every_folder_is_in_the_list_once_and_there_are_few():
    assert sorted(FOLDERS) == sorted({part(path, 0) for path in FILES} - {"__init__"})
    assert sorted(ENGINE) == sorted({part(path, 1) for path in ROOT.glob("speculative/*/*.py")})
    assert len(FOLDERS) <= 20


def test_a_folder_imports_only_from_those_before_it():
    engine = [path for path in FILES if part(path, 0) == "speculative"]
    assert not backward([path for path in FILES if part(path, 0) != "__init__"], FOLDERS, "lupi_trainer")
    assert not backward([p for p in engine if part(p, 1) != "__init__"], ENGINE, "lupi_trainer.speculative")


def test_an_import_against_the_order_is_found(monkeypatch):
    (last,) = [path for path in FILES if part(path, 0) == "cli"]
    assert backward([last], ["cli", *FOLDERS[:-1]], "lupi_trainer")


def test_the_engine_knows_torch_and_transformers_alone_and_only_trainers_know_trl():
    for path in FILES:
        outside = {name.split(".")[0] for name in imports(path)}
        if part(path, 0) == "speculative":
            assert not outside & {"trl", "datasets", "peft", "accelerate", "tokenizers", "rich"}, path
        assert "trl" not in outside or part(path, 0) in KNOW_TRL, path


def test_each_algorithm_of_wmtp_stands_alone_and_is_short():
    algorithms = {"mtp_baseline_trainer", "critic_trainer", "rho1_trainer"}
    for name in algorithms:
        path = ROOT / "wmtp" / f"{name}.py"
        assert not algorithms & {word for imported in imports(path) for word in imported.split(".")}, name
    for path in (ROOT / "wmtp").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno - node.lineno < 155, node.name


@pytest.mark.parametrize("folder", [ROOT, Path(__file__).parent])
def test_files_stay_small(folder):
    sizes = sorted((path.stat().st_size, str(path)) for path in folder.rglob("*.py"))
    assert sizes[len(sizes) // 2][0] < 8_000
    assert sizes[-1][0] <= 20_000, sizes[-1]
