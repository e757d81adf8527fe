"""Rows that axolotl distills from, as a teacher store: exactly, or refused by their number."""

import json
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from lupi_trainer.cli import main
from lupi_trainer.data.gold import gold_texts
from lupi_trainer.data.prompts import Words, encode
from lupi_trainer.lab import load_lab_records
from lupi_trainer.lupi_skd.store import TeacherStore
from tests.lupi_skd.stores import RECIPE
from tests.lupi_skd.training import make_trainer


RECORDS = load_lab_records("lab:common")[:40:5]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "records.json").write_text(json.dumps(RECORDS))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(records=tmp_path / "records.json", folder=tmp_path))
    return tmp_path


def rows_of(teacher, tokenizer, k: int, as_vllm: bool) -> list[dict]:
    """The records' answers with the teacher's likeliest tokens, in one of the two forms."""
    rows = []
    for record in RECORDS:
        prompt = [{"role": "user", "content": record["query"]}]
        ids = gold_texts(Words(tokenizer), [{"prompt": prompt, "answer": record["answer"]}])[0] or []
        start = encode(tokenizer, [prompt])[0]
        with torch.no_grad():
            logits = teacher(torch.tensor([[*start, *ids]])).logits[0, len(start) - 1 : -1]
        values, tokens = logits.float().log_softmax(-1).topk(k)
        row = {"messages": [*prompt, {"role": "assistant", "content": record["answer"]}]}
        if as_vllm:
            places = zip(tokens.tolist(), values.tolist())
            row["logprobs"] = [
                [{"token": f"token_id:{token}", "logprob": value} for token, value in zip(*place)] for place in places
            ]
        else:
            row |= {"logprobs": values.tolist(), "target_token_ids": tokens.tolist()}
        rows.append(row)
    return rows


def teach(folder: Path, rows: list[dict], *flags: str, name: str = "rows.json") -> int:
    path = folder / name
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(str(path))
    else:
        path.write_text(json.dumps(rows))
    words = ["--store", str(folder / "store"), "--axolotl", str(path), "--max_completion_length", "56", *flags]
    return main(["teach", "--config", str(folder / "recipe.yaml"), *words])


@pytest.mark.parametrize("policy", ["teacher", "gold"])
@pytest.mark.parametrize("as_vllm, name", [(True, "rows.json"), (False, "rows.parquet")])
@pytest.mark.grid(4)
def test_it_is_the_store_that_the_teacher_itself_writes(folder, teacher, tokenizer, policy, as_vllm, name):
    assert teach(folder, rows_of(teacher, tokenizer, 22, as_vllm), "--rollout_policy", policy, name=name) == 0
    losses = []
    for own in (False, True):
        store = str(folder / "store")
        if own and policy == "gold":
            store = str(folder / "own")
            flags = ["--rollout_policy", "gold", "--max_completion_length", "56", "--store", store]
            assert main(["teach", "--config", str(folder / "recipe.yaml"), *flags]) == 0
        trainer, log = make_trainer(
            folder / str(own),
            teacher_model=None,
            train_dataset=RECORDS,
            config_teacher_store=store,
            config_rollout_policy=policy,
            config_teacher_temperature=1.5 if policy == "teacher" else 0.7,
            config_max_completion_length=56,
        )
        trainer.train()
        losses.append(log.losses)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and len(losses[0]) == 3
    assert TeacherStore(folder / "store").manifest.top_k == 20


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda row: row["logprobs"].pop(), r"row 2: \d+ places for an answer of \d+ tokens"),
        (lambda row: row["logprobs"][1].pop(), "row 2: 19 of the 20 likeliest tokens"),
        (lambda row: row["logprobs"][0][0].update(logprob=0.5), "row 2: a number that is no log-probability"),
        (lambda row: row["logprobs"][0][1].update(logprob=-0.001), "row 2: probabilities that sum to more than 1"),
        (lambda row: row["logprobs"][0][0].update(token="Fova"), "row 2: an entry that is no {token: 'token_id:5'"),
        (lambda row: row["logprobs"][0][3].update(token="token_id:999"), "row 2: a token beyond the 568"),
        (lambda row: row["messages"].pop(), "row 2: its last message is not the assistant's"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_exactly_a_text_is_refused_by_its_number(folder, teacher, tokenizer, capsys, change, message):
    rows = rows_of(teacher, tokenizer, 20, as_vllm=True)
    change(rows[2])
    assert teach(folder, rows) == 2
    found = capsys.readouterr().err
    assert re.search(message, found), found
    assert not (folder / "store").exists()


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"target_logprobs": [[0.0]], "messages": []}], "`target_logprobs` are scaled to sum to 1"),
        ([{"compressed_logprobs": [[1]], "input_ids": [1]}], "`compressed_logprobs` are DistillKit's"),
        ([{"messages": []}], r"has no column \['logprobs'\]; found \['messages'\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_formats_are_refused_by_name(folder, capsys, rows, message):
    assert teach(folder, rows) == 2
    assert re.search(message, capsys.readouterr().err)
    assert (
        main(["teach", "--config", str(folder / "recipe.yaml"), "--store", str(folder / "s"), "--axolotl", "no"]) == 2
    )
    assert "--axolotl: no such file: no" in capsys.readouterr().err
