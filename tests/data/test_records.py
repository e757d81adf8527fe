import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from lupi_trainer.data.records import (
    load_probes,
    load_sft_data,
    load_training_data,
    prepare_columns,
    read_records,
    record_name,
    to_columns,
)


SEED_RECORD = {
    "id": "tradition_001",
    "category": "tradition",
    "query": "설날에 세배를 드릴 때 어떤 예절을 지켜야 하나요?",
    "knowledge": "세배는 웃어른께 드리는 새해 첫 절입니다.",
    "sources": ["국립민속박물관, 한국민속대백과사전"],
    "word_count": 312,
    "weakness_addressed": ["etiquette"],
}
PREDECESSOR = Path(__file__).parents[3] / "shared" / "reference"


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_seed_records_load_as_they_are(tmp_path, suffix):
    text = json.dumps([SEED_RECORD] if suffix == "json" else SEED_RECORD, ensure_ascii=False)
    dataset = load_training_data(write(tmp_path / f"data.{suffix}", text))
    assert dataset[0]["prompt"] == [{"role": "user", "content": SEED_RECORD["query"]}]
    assert dataset[0]["privileged_context"] == SEED_RECORD["knowledge"]
    assert dataset[0]["id"] == "tradition_001"


@pytest.mark.skipif(not PREDECESSOR.is_dir(), reason="the predecessor's files are not beside this checkout")
@pytest.mark.parametrize("name", ["korean_culture_train_200.json", "korean_culture_train_200_en.json"])
def test_predecessor_files_load(name):
    records = read_records(PREDECESSOR / name)
    dataset = load_training_data(str(PREDECESSOR / name))
    assert len(dataset) == 200
    assert [row["prompt"][-1]["content"] for row in dataset] == [r["query"] for r in records]
    assert dataset["privileged_context"] == [r["knowledge"] for r in records]


def test_messages_and_null_context_are_kept():
    prompt = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}]
    dataset = to_columns(
        [{"prompt": prompt, "privileged_context": None}, {"prompt": "How?", "privileged_context": " "}]
    )
    assert dataset[0]["prompt"] == prompt
    assert dataset["privileged_context"] == [None, None]


def test_records_of_both_forms_in_one_dataset_are_read_by_the_name_that_is_filled():
    one = Dataset.from_list([{"query": "q?", "knowledge": "k"}])
    other = Dataset.from_list([{"prompt": "p?", "privileged_context": "c", "knowledge": "x"}])
    dataset = prepare_columns(concatenate_datasets([one, other]))  # with nulls under the other form's names
    assert [row[-1]["content"] for row in dataset["prompt"]] == ["q?", "p?"]
    assert dataset["privileged_context"] == ["k", "c"]


def test_a_dataset_of_datasets_keeps_every_row():
    dataset = Dataset.from_list([{"query": f"q{i}?", "knowledge": f"k{i}"} for i in range(7)])
    prepared = prepare_columns(dataset)
    assert prepared["row_id"] == list(range(7))
    assert prepared["privileged_context"] == [f"k{i}" for i in range(7)]


def test_streaming_records_are_checked_as_they_are_read():
    dataset = Dataset.from_list([{"query": "q?", "knowledge": "k"}, {"query": "", "knowledge": "k"}])
    rows = iter(prepare_columns(dataset.to_iterable_dataset()))
    assert next(rows)["prompt"] == [{"role": "user", "content": "q?"}]
    with pytest.raises(ValueError, match="number 1.*empty"):
        next(rows)


@pytest.mark.parametrize(
    "records, message",
    [
        ([], "empty"),
        ([{"id": "a", "knowledge": "k"}], "'a'.*no `prompt`"),
        ([{"id": "a", "query": "q"}], "'a'.*no `privileged_context`"),
        ([{"id": "a", "query": "q", "knowledge": "k"}, {"id": "b", "query": " ", "knowledge": "k"}], "'b'.*empty"),
        ([{"query": "q", "knowledge": 3}], "number 0.*text or null"),
        ([{"query": 3, "knowledge": "k"}], "number 0.*text or a list"),
        ([{"prompt": [{"role": "assistant", "content": "x"}], "knowledge": None}], "end with a user message"),
        ([{"prompt": [{"content": "x"}], "knowledge": None}], "`role`"),
        ([{"id": "a", "query": "q", "knowledge": "k", "image": b"x"}], "'a'.*`image` would not be read"),
        (
            [{"query": "q", "knowledge": "k", "tools": []}, {"query": "q", "knowledge": "k", "tools": ["t"]}],
            "1: its `to",
        ),
    ],
)
def test_bad_records_are_named(records, message):
    with pytest.raises(ValueError, match=message):
        to_columns(records)


def test_a_dataset_without_a_column_says_which():
    with pytest.raises(ValueError, match="no column.*privileged_context"):
        prepare_columns(Dataset.from_list([{"prompt": "q"}]))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("bad.json", "[{", "not valid JSON"),
        ("bad.jsonl", '{"query": "q", "knowledge": null}\n{', "line 2"),
        ("bad.json", "{}", "expected a list"),
        ("bad.json", "[1]", "record 0"),
    ],
)
def test_broken_files_are_named(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        load_training_data(write(tmp_path / name, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        load_training_data(str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize(
    "probe, message",
    [
        ({"answers": ["a"]}, "probes.json: probe of record number 0: no `question`"),
        ({"question": "", "answers": ["a"], "record_id": "x"}, "'x'.*empty"),
        ({"question": "q", "answers": "a", "record_id": "x"}, "'x'.*accepted strings"),
        ({"question": "q", "answers": [], "record_id": "x"}, "'x'.*accepted strings"),
    ],
)
def test_probes_that_cannot_be_marked_are_named(tmp_path, probe, message):
    with pytest.raises(ValueError, match=message):
        load_probes(write(tmp_path / "probes.json", json.dumps([probe])))


def test_sft_data_wants_answers():
    assert load_sft_data("lab:new")[0]["completion"][0]["role"] == "assistant"
    with pytest.raises(ValueError, match="no text in the column 'gold'"):
        load_sft_data("lab:new", "gold")


@pytest.mark.parametrize(
    "record, number, name",
    [
        ({"id": "a"}, 3, "record 'a' (number 3)"),
        ({"record_id": "a"}, 3, "record 'a' (number 3)"),
        ({"id": None, "row_id": 7}, 3, "record number 3"),
        ({"id": "a", "row_id": 7}, None, "record 'a'"),
        ({"row_id": 7}, None, "record number 7"),
        ({}, None, "record number ?"),
    ],
)
def test_a_record_has_one_name_in_every_message(record, number, name):
    assert record_name(record, number) == name


def test_parts_that_a_file_does_not_have_are_named(caplog):
    load_training_data("lab:new", config=None, split="train")
    assert not caplog.records
    load_training_data("lab:new", config="en", split="train[:5]")
    assert "lab:new: configuration 'en', split 'train[:5]': no effect" in caplog.text


def test_a_row_id_may_be_numpy_s_or_missing_and_a_column_of_two_types_is_named():
    records = [{"query": "q", "knowledge": "k", "row_id": row_id} for row_id in (np.int64(9), None, 4)]
    assert to_columns(records)["row_id"][:] == [9, 1, 4]
    with pytest.raises(ValueError, match=r"the type of a column 'id' \(int, str\): "):
        to_columns([{**record, "id": name} for record, name in zip(records, (5, "a", "b"))])
