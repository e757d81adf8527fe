"""`lupi data check` finds one planted fault of every kind, and none in the shipped files."""

import json
import random
from pathlib import Path

import pytest

from lupi_trainer.cli import main
from lupi_trainer.data.check import near_pairs
from lupi_trainer.data.records import read_records


DATA = Path(__file__).parents[2] / "data"
FILES = {"ko": "korean_culture_train_200.json", "en": "korean_culture_train_200_en.json"}


@pytest.fixture
def files(tmp_path):
    """Three complete records with their probes, and a way to write and check them."""
    records = read_records(DATA / FILES["ko"])[:3]
    names = {record["id"] for record in records}
    probes = [p for p in read_records(DATA / "probes_ko.json") if p["record_id"] in names]

    def check(capsys, *options) -> tuple[int, list[str]]:
        paths = tmp_path / "records.json", tmp_path / "probes.json"
        for path, rows in zip(paths, (records, probes)):
            path.write_text(json.dumps(rows, ensure_ascii=False))
        status = main(["data", "check", str(paths[0]), "--probes", str(paths[1]), *options])
        return status, capsys.readouterr().out.splitlines()

    return records, probes, check


@pytest.mark.parametrize("language", FILES)
def test_the_shipped_files_have_no_fault(language, capsys):
    assert main(["data", "check", str(DATA / FILES[language]), "--probes", str(DATA / f"probes_{language}.json")]) == 0
    assert capsys.readouterr().out == "200 records and 600 probes: no problems\n"


@pytest.mark.parametrize("language", FILES)
def test_general_questions_are_checked_without_records(language, tmp_path, capsys):
    assert main(["data", "check", "--probes", str(DATA / f"general_{language}.json")]) == 0
    assert capsys.readouterr().out == "100 probes: no problems\n"
    path = tmp_path / "general.json"
    path.write_text(json.dumps([{"record_id": "g_1", "question": "Is it Paris?", "answers": ["Paris"]}]))
    assert main(["data", "check", "--probes", str(path)]) == 1
    assert "leak: the answer 'Paris'" in capsys.readouterr().out


def test_files_in_the_wrong_place_are_named(capsys):
    probes = str(DATA / "probes_ko.json")
    for arguments, said in (
        ([probes], f"{probes}: this looks like probes; give it with --probes"),
        ([], "nothing to check: name a file of records, or one of probes with --probes"),
    ):
        assert main(["data", "check", *arguments]) == 2
        assert said in capsys.readouterr().err


def reworded(record: dict) -> dict:
    words = record["knowledge"].split()
    words[40] = "가나다"
    return record | {"id": "new_001", "query": "전혀 다른 물음입니까?", "knowledge": " ".join(words)}


RECORD_FAULTS = {
    "field: no `category`": lambda rs: rs[1].pop("category"),
    "field: `query` must be a text that is not empty, got '  '": lambda rs: rs[1].update(query="  "),
    "field: `sources` must be a list of texts, none empty, got []": lambda rs: rs[1].update(sources=[]),
    "field: `weakness_addressed` must be a list of texts": lambda rs: rs[1].update(weakness_addressed="x"),
    "word_count: `word_count` is 7, its knowledge has": lambda rs: rs[1].update(word_count=7),
    "id: its id is that of record number 0": lambda rs: rs.insert(
        0, read_records(DATA / FILES["ko"])[9] | {"id": rs[0]["id"]}
    ),
    "duplicate: its knowledge is 9": lambda rs: rs.append(reworded(rs[0])),
    "duplicate: its query is 100% that of record 'tradition_001' (number 0)": lambda rs: rs[1].update(
        query=rs[0]["query"].replace("?", " !")
    ),
}
PROBE_FAULTS = {
    "field: `answers` must be a list of texts": lambda ps: ps[1].update(answers="왼손"),
    "field: `question` must be a text": lambda ps: ps[1].pop("question"),
    "record: there is no such record": lambda ps: ps[1].update(record_id="nowhere_001"),
    "answer: the answer '스웨덴' is not in the knowledge": lambda ps: ps[1].update(answers=["스웨덴"]),
    "leak: the answer": lambda ps: ps[1].update(question=f"답은 {ps[1]['answers'][-1]}입니까?"),
    "duplicate: its question is that of probe number 0": lambda ps: ps[1].update(
        question=ps[0]["question"], answers=ps[0]["answers"]
    ),
    "duplicate: its question is nearly that of probe number 2, with the answer '덕담'": lambda ps: ps.insert(
        3, ps[2] | {"question": "세배를 받은 어른이 복을 빌어 아랫사람에게 하는 말은 무엇인가요?"}
    ),
}


@pytest.mark.parametrize("said", RECORD_FAULTS)
def test_a_fault_of_a_record_is_said_in_one_line(files, said, capsys):
    records, _, check = files
    RECORD_FAULTS[said](records)
    status, lines = check(capsys)
    assert status == 1
    assert len(lines) == 2 and said in lines[0] and "records.json: record '" in lines[0]
    assert lines[1].endswith("probes: 1 problem")


@pytest.mark.parametrize("said", PROBE_FAULTS)
def test_a_fault_of_a_probe_is_said_in_one_line(files, said, capsys):
    _, probes, check = files
    PROBE_FAULTS[said](probes)
    status, lines = check(capsys)
    assert status == 1
    assert len(lines) == 2 and said in lines[0] and "probes.json: probe of record '" in lines[0]


@pytest.mark.parametrize("words", [79, 161])
def test_length_is_counted_in_words(files, words, capsys):
    records, probes, check = files
    probes[:] = probes[:1]
    answer = probes[0]["answers"][0]
    records[0].update(knowledge=" ".join([answer, *(f"낱말{i}" for i in range(words - 1))]), word_count=words)
    status, lines = check(capsys)
    assert status == 1 and len(lines) == 2
    assert f"length: its knowledge has {words} words, not 80 to 160" in lines[0]
    assert check(capsys, "--min_words", "79", "--max_words", "161")[0] == 0


def test_json_has_the_same_problems(files, capsys):
    records, _, check = files
    records[2]["word_count"] = 3
    status, lines = check(capsys, "--json")
    report = json.loads("\n".join(lines))
    assert status == 1 and (report["records"], report["probes"]) == (3, 9)
    [problem] = report["problems"]
    assert problem["kind"] == "word_count" and records[2]["id"] in problem["record"]
    assert problem["file"].endswith("records.json")


@pytest.mark.parametrize("text, said", [("{", "not valid JSON"), ("[]", "no record"), ('{"a": 1}', "expected a list")])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, text, said, capsys):
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert main(["data", "check", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_near_pairs_are_those_of_comparing_everything():
    draw = random.Random(0)
    sets = [{draw.choice("abcdefghij") for _ in range(draw.randint(0, 8))} for _ in range(120)]
    for share in (0.3, 0.5, 0.8, 1.0):
        found = {(i, j): similarity for i, j, similarity in near_pairs(sets, share)}
        wanted = {
            (i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j])
            for j in range(len(sets))
            for i in range(j)
            if sets[i] and sets[j] and len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= share
        }
        assert found == wanted and wanted
