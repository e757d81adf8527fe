"""`lupi teach`: what a teacher store holds, its resumption, and what is refused."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, load_dataset

from lupi_trainer.cli import main
from lupi_trainer.data.prompts import encode
from lupi_trainer.lupi_skd.store import TeacherStore, key_of, shard_path
from tests.lupi_skd.stores import RECORDS, make_folder, teach, trainer_of
from tests.teachers.vllm_stand_in import VLLMStandIn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("store"))


def test_what_is_in_it(folder, teacher, tokenizer):
    """Texts that the teacher writes, with its likeliest tokens at every place, and their size."""
    store = TeacherStore(folder / "store")
    known = store.manifest
    assert (known.model, known.prompts, known.samples, known.top_k, known.seed) == ("lab:teacher", 13, 3, 20, 7)
    assert sorted(path.name for path in (folder / "store").glob("shard-*")) == [
        f"shard-0000{n}.arrow" for n in range(4)
    ]
    messages = [{"role": "user", "content": RECORDS[-1]["query"]}]
    prompt = encode(tokenizer, [messages])[0]
    for text in (store.text(key_of(prompt), sample) for sample in range(3)):
        assert text.ids[-1] == 2 or len(text.ids) == 20
        with torch.no_grad():
            logits = teacher(torch.tensor([[*prompt, *text.ids]])).logits[0, len(prompt) - 1 : -1]
        values, ids = logits.float().log_softmax(-1).topk(20)
        assert np.array_equal(text.top_ids, ids.numpy())
        np.testing.assert_allclose(text.top_log_probs, values.numpy(), atol=1e-5)
    # 4 bytes for a token and 8 for each of its 20 likeliest, some for a text, and a few kilobytes for a shard
    assert 164 < store.size() / store.tokens() < 164 + (4 * 2048 + 39 * 64) / store.tokens()
    rows = load_dataset("arrow", data_files=str(folder / "store" / "*.arrow"), split="train")
    assert isinstance(rows, Dataset) and len(rows) == 39 and sum(map(len, rows["completion_ids"])) == store.tokens()
    assert len({(key, *ids) for key, ids in zip(rows["key"], rows["completion_ids"])}) > 13  # samples differ


def test_a_killed_writing_goes_on_where_it_was(folder, tmp_path, capsys):
    shutil.copytree(folder / "store", tmp_path / "store")
    for name in ("records.json", "recipe.yaml"):
        shutil.copy(folder / name, tmp_path / name)
    shards = [shard_path(tmp_path / "store", n) for n in range(4)]
    whole = [path.read_bytes() for path in shards]
    shards[1].unlink()  # not yet written
    shards[2].write_bytes(whole[2][: len(whole[2]) // 2])  # half of it is there, though no rename was
    (tmp_path / "store" / "shard-00001.part").write_bytes(whole[1][:100])  # killed while it was written
    kept = shards[0].stat().st_mtime_ns
    with pytest.raises(ValueError, match="is not complete: 1 of its 4 shards are still to be written"):
        trainer_of(tmp_path, tmp_path / "run")
    assert teach(tmp_path, "--samples", "3", "--shard_rows", "10") == 0
    assert "2 of 4 shards written now" in capsys.readouterr().out
    assert shards[0].stat().st_mtime_ns == kept and not list((tmp_path / "store").glob("*.part"))
    for path, before in zip(shards, whole):  # the texts do not depend on what is written together
        now, then = (pa.ipc.open_file(pa.BufferReader(data)).read_all() for data in (path.read_bytes(), before))
        assert now["completion_ids"].equals(then["completion_ids"]) and now["key"].equals(then["key"])
    assert teach(tmp_path, "--samples", "3", "--shard_rows", "10") == 0
    assert "0 of 4 shards written now" in capsys.readouterr().out


def test_another_teacher_under_the_same_name_does_not_go_on(folder, tmp_path, teacher, tokenizer, capsys):
    where = tmp_path / "teacher"
    teacher.save_pretrained(where)
    tokenizer.save_pretrained(where)
    flags = ["--teacher_model_name_or_path", str(where), "--shard_rows", "10"]
    assert teach(folder, *flags, store=str(tmp_path / "store")) == 0
    shard_path(tmp_path / "store", 1).unlink()
    with torch.no_grad():
        teacher.model.layers[0].mlp.down_proj.weight.mul_(3)
    teacher.save_pretrained(where)
    assert teach(folder, *flags, store=str(tmp_path / "store")) == 2
    assert "another teacher answers than the one that wrote the shards" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--teacher_temperature", "0.9"], "teacher_temperature is 0.9, and the store was written with 1.5"),
        (["--seed", "8"], "seed is 8, and the store was written with 7"),
        (["--loss_top_k", "5"], "top_k is 5, and the store was written with 20"),
        (["--samples", "2"], "samples is 2, and the store was written with 3"),
        (["--teacher_system_prompt", "You are none."], "teacher_system_prompt is 'You are none.'"),
        (["--dataset_name", "lab:eval"], "prompts is 12, and the store was written with 13"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_second_writing_with_other_settings_is_refused(folder, capsys, flags, message):
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (folder / "store").iterdir())
    assert teach(folder, "--samples", "3", "--shard_rows", "10", *flags) == 2
    assert message in capsys.readouterr().err
    assert before == sorted((p.name, p.stat().st_mtime_ns) for p in (folder / "store").iterdir())


@pytest.mark.slow
def test_a_store_that_a_server_writes(folder, tmp_path, teacher, tokenizer):
    """In few requests; the texts are its own, and what it says of them is what the teacher says here."""
    with VLLMStandIn(teacher, tokenizer) as server:
        flags = ["--teacher_model_name_or_path", "none", "--teacher_model_server_url", server.url, "--samples", "2"]
        before = len(server.requests)
        assert teach(folder, *flags, store="served") == 0
        writing = [body for body in server.requests[before:] if body["max_tokens"] > 1]
        assert len(writing) == 26 and len({body["seed"] for body in writing}) == 26
        assert all(body["stop_token_ids"] == [2] for body in writing)
        gold = ["--rollout_policy", "gold", "--max_completion_length", "56", *flags[:4]]
        assert teach(folder, *gold, store="served-gold") == 0
    store = TeacherStore(folder / "served")
    assert store.manifest.server and store.manifest.model == "teacher"
    prompt = encode(tokenizer, [[{"role": "user", "content": RECORDS[-1]["query"]}]])[0]
    for name, gold in (("served", []), ("served-gold", None)):
        text = encode_gold(tokenizer, RECORDS[-1]) if gold is None else gold
        found = TeacherStore(folder / name).text(key_of(prompt, text), 0)
        assert name == "served" or found.ids == text
        with torch.no_grad():
            logits = teacher(torch.tensor([[*prompt, *found.ids]])).logits[0, len(prompt) - 1 : -1]
        values, ids = logits.float().log_softmax(-1).topk(20)
        assert np.array_equal(found.top_ids, ids.numpy())
        np.testing.assert_allclose(found.top_log_probs, values.numpy(), atol=1e-5)
    trainer, losses = trainer_of(folder, tmp_path, "served")
    trainer.train()
    assert len(losses.losses) == 2


def encode_gold(tokenizer, record: dict) -> list[int]:
    return [*tokenizer(record["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--rollout_policy", "speculative"],
            "rollout_policy='speculative': a store holds texts that need no student",
        ),
        (["--rollout_policy", "gold", "--samples", "2"], "with rollout_policy='gold' all texts of a prompt would be"),
        (["--teacher_temperature", "0", "--samples", "2"], "with teacher_temperature=0 all texts of a prompt would"),
        (["--teacher_model_name_or_path", "none"], "no teacher: set `teacher_model_name_or_path`"),
        (["--dataset_name", "nothing.json"], "dataset_name: no such data file: nothing.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_store_can_be_written_with(folder, tmp_path, capsys, flags, message):
    assert teach(folder, *flags, store=str(tmp_path / "new")) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_store_needs_a_folder_and_a_run_a_store(folder, tmp_path, capsys):
    assert main(["teach", "--config", str(folder / "recipe.yaml")]) == 2
    assert "no folder for the store: --store FOLDER" in capsys.readouterr().err
    words = ["skd", "--config", str(folder / "recipe.yaml"), "--teacher_store", str(tmp_path / "none")]
    assert main(words) == 2
    assert f"teacher_store: no such folder: {tmp_path / 'none'}; `lupi teach" in capsys.readouterr().err
