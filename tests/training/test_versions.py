"""The declared range of versions is the tested one, and a newer version is said once."""

import re
import warnings
from pathlib import Path

import pytest
from packaging.version import Version

from lupi_trainer.training import versions
from tests import forks


ROOT = Path(__file__).parent.parent.parent


def pins(path: str) -> dict[str, str]:
    """TRL's and transformers' exact versions in a file of constraints."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    return {
        name: release
        for name, _, release in (line.partition("==") for line in lines)
        if name in versions.NEWEST_TESTED
    }


def test_the_declared_range_is_the_tested_one():
    declared = dict(re.findall(r'"(trl|transformers)([^"]*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    oldest, newest, pinned = (
        pins(f) for f in ("tests/versions/oldest.txt", "tests/versions/newest.txt", "constraints.txt")
    )
    assert declared.keys() == oldest.keys() == newest.keys() == pinned.keys() == versions.NEWEST_TESTED.keys()
    for name, tested in versions.NEWEST_TESTED.items():
        assert declared[name].startswith(">=") and "<" not in declared[name]
        assert Version(declared[name][2:]) == Version(oldest[name]) <= Version(pinned[name]) <= Version(newest[name])
        assert Version(newest[name]).release[:2] == Version(tested).release


@pytest.mark.parametrize(
    ("trl", "transformers", "said"),
    [
        ("1.16.0", "5.24.0", []),
        ("1.16.3", "5.17.0", []),
        ("1.17.0", "5.24.1", ["trl 1.17.0 (tested up to 1.16)"]),
        ("1.16.0", "6.0.0.dev0", ["transformers 6.0.0.dev0 (tested up to 5.24)"]),
        ("2.0", "5.100.1", ["trl 2.0 (tested up to 1.16)", "transformers 5.100.1 (tested up to 5.24)"]),
    ],
)
def test_a_newer_release_is_said(monkeypatch, trl, transformers, said):
    monkeypatch.setattr(versions, "version", {"trl": trl, "transformers": transformers}.get)
    monkeypatch.setattr(versions, "NEWEST_TESTED", {"trl": "1.16", "transformers": "5.24"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        versions.warn_if_newer()
    assert len(caught) == bool(said)
    for warning in caught:
        assert f"not tested with {' and '.join(said)}: " in str(warning.message)


def test_importing_a_trainer_says_it_once():
    code = """
import sys, warnings
warnings.simplefilter("always")
for name in [n for n in sys.modules if n.startswith("lupi_trainer") and "speculative" not in n]:
    del sys.modules[name]  # to be imported as by a new process; torch keeps the operators of the others
from lupi_trainer.training import versions
versions.NEWEST_TESTED = dict.fromkeys(versions.NEWEST_TESTED, "0.1")
from lupi_trainer import KDLoRATrainer, LUPISKDTrainer, Rho1WMTPTrainer
from lupi_trainer.scripts import sft
"""
    done = forks.run("-c", code, cwd=ROOT)
    done.check_returncode()
    assert done.stderr.count("RuntimeWarning: not tested with trl") == 1, done.stderr
