"""What is handed on: the sdist is the checkout, and the wheel made from it has all that is read at run time."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import lupi_trainer


ROOT = Path(__file__).parent.parent
MADE = re.compile(r"\.venv.*|\.git|\.\w+_cache|\.hypothesis|__pycache__|build|dist|runs|wandb|.*\.(egg-info|pyc)")


def made(folder: str, names: list[str]) -> list[str]:
    """What .gitignore leaves out, as `shutil.copytree` asks for it."""
    return [name for name in names if MADE.fullmatch(name)]


def build(kind: str, source: Path, folder: Path) -> Path:
    """What the build backend makes of `source`: kind is "sdist" or "wheel"."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, text=True)
    return folder / done.stdout.splitlines()[-1]


def below(folder: Path, pattern: str = "*") -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern) if path.is_file()}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("dist") / "checkout", ignore=made))


@pytest.fixture(scope="module")
def unpacked(checkout):
    """The folder that the sdist holds."""
    here = below(checkout)
    with tarfile.open(build("sdist", checkout, checkout.parent)) as archive:
        archive.extractall(checkout.parent, filter="data")
    (folder,) = (path for path in checkout.parent.iterdir() if path.is_dir() and path != checkout)
    assert folder.name == f"lupi_trainer-{lupi_trainer.__version__}"
    assert here - below(folder) == set(), "MANIFEST.in leaves these out"
    return folder


@pytest.fixture(scope="module")
def wheel(unpacked):
    with zipfile.ZipFile(build("wheel", unpacked, unpacked.parent)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_sdist_is_the_checkout(checkout, unpacked):
    tests = [name for name in below(checkout) if name.startswith("tests/")]
    assert len(tests) > 100 and all((unpacked / n).read_bytes() == (checkout / n).read_bytes() for n in tests)


def test_the_wheel_has_all_that_is_read_at_run_time(checkout, wheel):
    held = {name for name in wheel if name.startswith("lupi_trainer/")}
    package = {f"lupi_trainer/{name}" for name in below(checkout / "lupi_trainer")}
    recipes = {f"lupi_trainer/recipes/{name}" for name in below(checkout / "recipes") if "RESULTS" not in name}
    assert package | recipes <= held
    assert "lupi_trainer/py.typed" in held and "lupi_trainer/lab/assets/teacher/model.safetensors" in held
    named = {name for recipe in recipes for name in re.findall(r"\bdata/[\w/]+\.json", wheel[recipe].decode())}
    named |= {f"data/{name}" for name in below(checkout / "data", "*.txt")}  # what `lupi real` reads, and the personas
    assert len(named) > 5 and {name.replace("data/", "lupi_trainer/shipped/", 1) for name in named} <= held
    others = {name.split("/")[0] for name in set(wheel) - held}
    assert others == {f"lupi_trainer-{lupi_trainer.__version__}.dist-info"}, "tests and docs/ stay out"


def test_its_metadata_is_that_of_the_package(wheel):
    (name,) = (name for name in wheel if name.endswith(".dist-info/METADATA"))
    metadata = wheel[name].decode()
    assert f"\nVersion: {lupi_trainer.__version__}\n" in metadata
    assert "\nDescription-Content-Type: text/markdown\n" in metadata
    assert (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[0] in metadata


def test_no_python_is_promised_that_a_dependency_refuses():
    """`trl>=1.16`, for one, is not to be had for Python 3.10; so the package must not be, either."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = [f"3.{minor}" for minor in range(8, 15) if f"3.{minor}.9" in SpecifierSet(project["requires-python"])]
    assert promised and "trl" in {Requirement(text).name for text in project["dependencies"]}
    for name in (Requirement(text).name for text in project["dependencies"]):
        theirs = SpecifierSet(metadata(name)["Requires-Python"])
        assert all(f"{version}.9" in theirs for version in promised), name
