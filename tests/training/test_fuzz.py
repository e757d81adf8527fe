"""Checkpoints with whatever damage: the whole one is taken, or the one before it with a line that says why."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lupi_trainer.training.checkpoints import MANIFEST, find_checkpoint, seal
from lupi_trainer.training.loss_totals import read_state
from lupi_trainer.training.private import TrainerHooks
from tests.fuzz import changed, check_refusal, examples, values
from tests.lupi_skd.training import make_trainer


FILES = {"model.safetensors": b"weights", "sub/state.json": b'{"seen": 3}', "optimizer.pt": b"\x80\x02}q\x00."}


def make(folder: Path) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    seal(folder)
    return folder


@st.composite
def damages(draw):
    """(what, which file, bytes, a place in them)."""
    what = draw(st.sampled_from(["nothing", "cut", "byte", "more", "gone", "folder", "zeros", "swap", "manifest"]))
    file = draw(st.sampled_from([*FILES, MANIFEST]))
    return what, file, draw(st.binary(min_size=1, max_size=9)), draw(st.integers(0, 200))


def damage(folder: Path, what: str, file: str, some: bytes, place: int) -> None:
    path = folder / file
    content = path.read_bytes()
    place = min(place, max(len(content) - 1, 0))
    if what in ("gone", "folder"):
        path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "swap":
        path.write_bytes(next(iter(FILES.values())))
    elif what != "gone":
        new = {"cut": content[:place], "byte": content[:place] + some[:1] + content[place + 1 :]}
        new |= {"more": content + some, "zeros": b"\0" * len(content)}
        path.write_bytes(new.get(what, content))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    make(folder / "whole")
    return folder


def is_whole(folder: Path, manifest: dict) -> bool:
    """By the files themselves."""
    try:
        same = json.loads((folder / MANIFEST).read_text()) == manifest
        return same and all((folder / name).read_bytes() == content for name, content in FILES.items())
    except (OSError, ValueError):
        return False


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(base, caplog):
    manifest = json.loads((base / "whole" / MANIFEST).read_text())

    @examples(40)
    @example([("nothing", MANIFEST, b"0", 0)], {**manifest, "files": {**manifest["files"], "\ud800": 7}})
    @given(st.lists(damages(), min_size=1, max_size=2), st.one_of(st.none(), changed(manifest)))
    def check(all_damage, other):
        caplog.clear()
        run = base / "run"
        shutil.rmtree(run, ignore_errors=True)
        older, newer = run / "checkpoint-9", run / "checkpoint-10"
        for folder in (older, newer):
            shutil.copytree(base / "whole", folder)
        if other is not None:
            (newer / MANIFEST).write_text(json.dumps(other))
        for what in all_damage:
            if (newer / what[1]).is_file():
                damage(newer, *what)
        with caplog.at_level(logging.WARNING):
            found = find_checkpoint(True, run)
        if found == str(older):
            assert (
                not is_whole(newer, manifest) and len(caplog.messages) == 1 and "checkpoint-10 is not" in caplog.text
            )
            with pytest.raises(ValueError) as error:
                find_checkpoint(str(newer), run)
            check_refusal(error.value)
        else:  # a manifest may vouch for fewer files, or have no checksums, as those of earlier versions
            assert found == str(newer) == find_checkpoint(str(newer), run) and not caplog.messages
            assert is_whole(newer, manifest) or not (newer / MANIFEST).read_bytes() == (older / MANIFEST).read_bytes()

    check()


def test_a_state_is_taken_over_or_named(base, monkeypatch):
    """That of whoever makes a checkpoint and its manifest: odd parts in it end the run in a line."""
    trainer, _ = make_trainer(base, config_gamma_policy="goodput", config_max_steps=1)
    trainer.train()
    folder = base / "odd"
    folder.mkdir()
    monkeypatch.setattr(TrainerHooks, "save_process_state", lambda self, folder: None)
    monkeypatch.setattr(TrainerHooks, "load_process_state", lambda self, folder: None)
    trainer.save_process_state(str(folder))
    states = {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    assert len(states) == 2

    @examples(100)
    @given(st.one_of([st.tuples(st.just(name), changed(state)) for name, state in states.items()]))
    def check(odd):
        for name, state in {**states, odd[0]: odd[1]}.items():
            (folder / name).write_text(json.dumps(state))
        try:
            trainer.load_process_state(str(folder))
        except ValueError as error:
            assert odd[0] in str(error)
            check_refusal(error)

    check()


def test_a_state_of_a_checkpoint_is_read_or_refused(base):
    @examples(100)
    @given(st.one_of(changed({"loss": [1.5, 2.0], "tokens": 7}).map(json.dumps), values.map(json.dumps), st.text()))
    def check(text):
        (base / "state_0.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            state = read_state(base, "state_{process}.json", 1)
        except ValueError as error:
            return check_refusal(error)
        assert state == json.loads(text)

    check()
