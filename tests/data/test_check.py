"""`lupi data check` finds one planted fault of every kind, and none in the shipped files."""

import json
from pathlib import Path

import pytest

from lupi_trainer.cli import main
from lupi_trainer.data.records import load_probes, load_training_data, read_records
from lupi_trainer.data.squad import load_qa_records


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
        run = ["data", "check", str(paths[0]), "--probes", str(paths[1]), "--schema", "culture"]
        status = main([*run, *options])
        return status, capsys.readouterr().out.splitlines()

    return records, probes, check


@pytest.mark.parametrize("language", FILES)
def test_the_shipped_files_have_no_fault(language, capsys):
    run = ["data", "check", str(DATA / FILES[language]), "--probes", str(DATA / f"probes_{language}.json")]
    for schema in ("training", "culture"):
        assert main([*run, "--schema", schema]) == 0
        assert capsys.readouterr().out == "200 records and 600 probes: no problems\n"


@pytest.mark.parametrize("language", FILES)
def test_general_questions_are_checked_without_records(language, tmp_path, capsys):
    assert main(["data", "check", "--probes", str(DATA / f"general_{language}.json")]) == 0
    assert capsys.readouterr().out == "100 probes: no problems\n"
    path = tmp_path / "general.json"
    path.write_text(json.dumps([{"record_id": "g_1", "question": "Is it Paris?", "answers": ["Paris"]}]))
    for schema, status, counted in (("training", 0, "1 probe: no problems, 1 doubt"), ("culture", 1, "1 problem")):
        assert main(["data", "check", "--probes", str(path), "--schema", schema]) == status
        said = capsys.readouterr().out
        assert "leak: an accepted answer is in the question: 'Paris' in" in said and said.endswith(f"{counted}\n")


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
    "word_count: `word_count` is not that of its knowledge: 7, ": lambda rs: rs[1].update(word_count=7),
    "id: its id is that of another record: number 0": lambda rs: rs.insert(
        0, read_records(DATA / FILES["ko"])[9] | {"id": rs[0]["id"]}
    ),
    "duplicate: its knowledge is nearly that of another record: 9": lambda rs: rs.append(reworded(rs[0])),
    "duplicate: its query is nearly that of another record: 100% that of record 't": lambda rs: rs[1].update(
        query=rs[0]["query"].replace("?", " !")
    ),
}
PROBE_FAULTS = {
    "field: `answers` must be a list of accepted strings, got '왼손'": lambda ps: ps[1].update(answers="왼손"),
    "field: no `question`; found ['": lambda ps: ps[1].pop("question"),
    "record: there is no record of its `record_id`": lambda ps: ps[1].update(record_id="nowhere_001"),
    "answer: the first accepted answer is not in the knowledge: '스웨덴'": lambda ps: ps[1].update(answers=["스웨덴"]),
    "leak: an accepted answer is in the question: ": lambda ps: ps[1].update(
        question=f"답은 {ps[1]['answers'][-1]}입니까?"
    ),
    "duplicate: its question is asked before, as number 0": lambda ps: ps[1].update(
        question=ps[0]["question"], answers=ps[0]["answers"]
    ),
    "duplicate: its question is nearly another one, with the same answer: number 2, '덕담'": lambda ps: ps.insert(
        3, ps[2] | {"question": "세배를 받은 어른이 복을 빌어 아랫사람에게 하는 말은 무엇인가요?"}
    ),
}


@pytest.mark.parametrize("said", RECORD_FAULTS)
def test_a_fault_of_a_record_is_said_in_one_line(files, said, capsys):
    records, probes, check = files
    probes[:] = [probe for probe in probes if probe["record_id"] == records[2]["id"]]
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
    assert f"length: its knowledge must have 80 to 160 words, has {words}" in lines[0]
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


OWN = [
    {"prompt": "What is the Ku?", "privileged_context": "The Ku is a river."},
    {"prompt": "Where does the Ku end?", "privileged_context": "The Ku is a river."},
    {"query": "Hello?", "knowledge": None},
    {"id": 7, "prompt": [{"role": "user", "content": "Who is Mo?"}], "privileged_context": "Mo is a king. "},
]


def write(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_what_training_accepts_is_no_problem(tmp_path, capsys):
    """Either pair of names, `id` or none, several questions on one text, probes that name records by place."""
    records = write(tmp_path / "own.jsonl", OWN)
    probes = [{"question": "What is Ku?", "answers": ["a river"], "record_id": place} for place in (0, "1")]
    probes = [{"question": "Who is Mo?", "answers": ["king"], "record_id": 7}, *probes[:1]]
    probes.append({"question": "And?", "answers": ["x"], "privileged_context": "x"})
    assert len(load_training_data(records)) == 4
    assert main(["data", "check", records, "--probes", write(tmp_path / "probes.jsonl", probes)]) == 0
    assert capsys.readouterr().out == "4 records and 3 probes: no problems\n"
    assert main(["data", "check", "lab:mixed", "--probes", "lab:probes"]) == 0


def test_what_training_refuses_is_grouped_and_doubts_are_no_problem(tmp_path, capsys):
    records = write(tmp_path / "own.jsonl", [*OWN, {"query": "", "knowledge": "x"}, {"query": " ", "knowledge": "x"}])
    probes = [
        {"question": "Is the Ku a lake?", "answers": ["a lake"], "record_id": 0},
        {"question": "Who?", "answers": ["Mo"], "record_id": "nobody"},
        {"question": "Hello?", "answers": ["Hi"], "record_id": 2},
        {"question": "hello", "answers": "Hi"},
    ]
    run = ["data", "check", records, "--probes", (asked := write(tmp_path / "probes.jsonl", probes))]
    assert main(run) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{records}: 2 records: field: the prompt is empty, first: number 4",
        f"{asked}: probe of record number 3: field: `answers` must be a list of accepted strings, got 'Hi'",
        f"{asked}: doubt: probe of record 0 (number 0): leak: an accepted answer is in the question: "
        "'a lake' in 'Is the Ku a lake?'",
        f"{asked}: doubt: probe of record 0 (number 0): answer: the first accepted answer is not in the knowledge: "
        "'a lake'",
        f"{asked}: doubt: probe of record 'nobody' (number 1): record: there is no record of its `record_id`",
        f"{asked}: doubt: probe of record 2 (number 2): record: its record has no knowledge",
        f"{asked}: doubt: probe of record number 3: duplicate: its question is asked before, as number 2: 'hello'",
        f"{asked}: doubt: probe of record number 3: record: it has no `knowledge`, and no `record_id` to find a "
        "record by",
        "6 records and 4 probes: 3 problems, 6 doubts",
    ]
    assert main([*run, "--all"]) == 1 and len(capsys.readouterr().out.splitlines()) == 10
    with pytest.raises(ValueError, match="own.jsonl: record number 4: the prompt is empty"):
        load_training_data(records)
    assert main([*run, "--min_words", "3"]) == 2
    assert "--min_words has no effect without --schema culture" in capsys.readouterr().err


def test_an_answer_is_text_or_not_there(tmp_path, capsys):
    record = {"query": "Who is Mo?", "knowledge": None}
    rows = [record | {"answer": answer} for answer in ("A king.", None, " ", ["A king."])]
    records = write(tmp_path / "own.jsonl", rows)
    assert main(["data", "check", records]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{records}: record number 3: field: `answer` must be text or null, got list",
        f"{records}: doubt: record number 2: empty: its `answer` is empty, so it has no gold answer",
        "4 records: 1 problem, 1 doubt",
    ]


def test_what_is_empty_or_misspelled_is_named_by_record(tmp_path, capsys):
    rows = [
        {"prompt": "Who is Mo?", "privileged_context": " "},
        {"query": "Who is Ku?", "knowledge": ""},
        {"prompt": "Who is Ti?", "privileged_context": "\n"},
        {"prompt": "Who is Fo?", "privileged_contxt": "Fo is a king."},
        {"Prompt": "Who is Ra?", "knowledge": "Ra is a king."},
        {"prompt": "Who is La?", "knowledge": None, "tools": ["x"]},
    ]
    probes = [
        {"question": "Who is Mo?", "answers": ["king"], "knowledge": ""},
        {"question": "Who is Fo?", "answers": ["king"], "knowlege": "Fo is a king."},
        {"question": "Who is Ti?", "answers": "king", "knowledge": "Ti is a king."},
        {"question": "Who is Ra?", "answer": ["king"], "knowledge": "Ra is a king."},
    ]
    records, asked = write(tmp_path / "own.jsonl", rows), write(tmp_path / "probes.jsonl", probes)
    assert main(["data", "check", records]) == 1
    blank = "is empty, so the teacher sees only what the student sees; null says that it is meant"
    assert capsys.readouterr().out.splitlines() == [
        f"{records}: record number 3: field: no `privileged_context` (`knowledge` is read as well), which is null "
        "where the teacher should see only what the student sees; found ['privileged_contxt', 'prompt']; did you mean "
        "`privileged_context` by `privileged_contxt`?",
        f"{records}: record number 4: field: no `prompt` (`query` is read as well); found ['Prompt', 'knowledge']; "
        "did you mean `prompt` by `Prompt`?",
        f"{records}: record number 5: field: its `tools` would not be read: text alone is; leave that column out",
        f"{records}: doubt: 2 records: empty: its `privileged_context` {blank}, first: number 0",
        f"{records}: doubt: record number 1: empty: its `knowledge` {blank}",
        "6 records: 3 problems, 3 doubts",
    ]
    assert main(["data", "check", "--probes", asked]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{asked}: 2 probes: field: `answers` must be a list of accepted strings, first: number 2, got 'king'",
        f"{asked}: doubt: probe of record number 0: empty: its `knowledge` is empty",
        f"{asked}: doubt: probe of record number 1: field: `knowlege` is not read; did you mean `knowledge`?",
        "4 probes: 2 problems, 2 doubts",
    ]


def test_columns_that_do_not_agree_are_a_problem(tmp_path, capsys):
    rows = [{"prompt": "a", "knowledge": None, "id": name} for name in ("one", 2)]
    assert main(["data", "check", write(tmp_path / "own.jsonl", rows)]) == 1
    assert "all records: type: the records do not agree on the type of a column" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["handbook.md", "table.CSV", "handbook"])
def test_a_file_of_another_kind_is_said_to_be_one(tmp_path, name, capsys):
    path = tmp_path / name
    if path.suffix:
        path.write_text("# Handbook")
    else:
        path.mkdir()
        (path / "page.md").write_text("# Page")
    for load in (load_training_data, load_probes, read_records, load_qa_records):
        with pytest.raises(ValueError, match=f"{name} is a (file of another kind|folder), and records are wanted"):
            load(str(path))
    with pytest.raises(ValueError, match="an object a line is called .jsonl"):
        read_records(write(tmp_path / "lines.json", OWN))


def test_each_copy_is_reported_once_against_the_first_with_a_bar_on_a_terminal_alone(files, capsys, monkeypatch):
    records, probes, check = files
    first, (question, *_) = records[0], probes
    records += [reworded(first) | {"id": f"new_{number:03d}", "query": first["query"]} for number in range(30)]
    probes[1:] = [question | {"question": f"{question['question']} {word}"} for word in ("정말", "정말로")]
    status, lines = check(capsys, "--all")
    copies = [line for line in lines if "duplicate: its" in line]
    assert status == 1 and len(copies) == 2 * 30 + 2 and lines[-1].endswith(f": {len(copies)} problems")
    assert all(first["id"] in line or ": number 0, " in line for line in copies)

    monkeypatch.setattr("lupi_trainer.training.progress.WorkBar.__init__.__defaults__", (True, None, 0.0, None))
    for terminal in ("1", ""):
        monkeypatch.setenv("TTY_COMPATIBLE", terminal)
        main(["data", "check", str(DATA / FILES["ko"]), "--schema", "culture"])
        assert ("knowledge: compared" in capsys.readouterr().err) == bool(terminal)
