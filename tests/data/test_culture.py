"""The Korean-culture data hold what their README says."""

import collections
import json
import re
import unicodedata
from pathlib import Path

import pytest
import yaml

from lupi_trainer.data.answers import contains, normalize
from lupi_trainer.data.prompts import load_few_shot_examples
from lupi_trainer.data.records import load_probes, load_training_data, read_records


DATA = Path(__file__).parents[2] / "data"
PREDECESSOR = Path(__file__).parents[3] / "shared" / "reference"
FILES = {"ko": "korean_culture_train_200.json", "en": "korean_culture_train_200_en.json"}
FILES_OF = {
    language: {path.name for path in DATA.glob(f"*_{language}.*")} | {name} for language, name in FILES.items()
}
CATEGORIES = {"tradition", "history", "food", "geography", "modern"}


def runs(text: str, language: str) -> set[str]:
    """Every run of eight English words, or of fifteen Korean syllables."""
    if language == "en":
        words = normalize(text).split()
        return {" ".join(words[i : i + 8]) for i in range(len(words) - 7)}
    syllables = re.sub(r"[^\uac00-\ud7af]", "", unicodedata.normalize("NFKC", text))
    return {syllables[i : i + 15] for i in range(len(syllables) - 14)}


def texts_of(value) -> list[str]:
    """Every text in it, but the names of sources, which are what they are."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = [child for key, child in value.items() if key != "sources"]
    return [text for child in value for text in texts_of(child)] if isinstance(value, list) else []


@pytest.mark.parametrize("language", FILES)
def test_records(language):
    records = read_records(DATA / FILES[language])
    assert len(records) == len({r["id"] for r in records}) == len({normalize(r["query"]) for r in records}) == 200
    assert collections.Counter(r["category"] for r in records) == dict.fromkeys(CATEGORIES, 40)
    for record in records:
        assert all(record[key] for key in ("query", "knowledge", "sources", "weakness_addressed")), record["id"]
        assert record["word_count"] == len(record["knowledge"].split())
        assert 80 <= record["word_count"] <= 160, record["id"]
        assert not any("http" in source for source in record["sources"])
    assert len(load_training_data(str(DATA / FILES[language]))) == 200


def test_the_languages_share_their_ids():
    korean, english = (read_records(DATA / name) for name in FILES.values())
    assert [(r["id"], r["category"]) for r in korean] == [(r["id"], r["category"]) for r in english]
    assert korean[0]["query"] == "설날에 세배를 드릴 때 어떤 예절을 지켜야 하나요?"


@pytest.mark.parametrize("language", FILES)
def test_probes_are_answered_by_the_knowledge_alone(language):
    knowledge = {r["id"]: r["knowledge"] for r in read_records(DATA / FILES[language])}
    probes = load_probes(str(DATA / f"probes_{language}.json"))
    assert collections.Counter(p["record_id"] for p in probes) == dict.fromkeys(knowledge, 3)
    for probe in probes:
        assert contains(knowledge[probe["record_id"]], probe["answers"][0]), probe
        assert not any(contains(probe["question"], answer) for answer in probe["answers"]), probe


NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety once twice thrice left right"
).split()
KOREAN_NUMBERS = re.compile(
    "(열|스물|서른|마흔|쉰|예순|일흔|여든|아흔)?(하나|둘|셋|넷|다섯|여섯|일곱|여덟|아홉)?|[이삼사오육칠팔구]?십[일이삼사오육칠팔구]?"
)


@pytest.mark.parametrize("language", FILES)
def test_no_answer_is_so_short_that_a_wrong_one_holds_it(language):
    for probe in load_probes(str(DATA / f"probes_{language}.json")):
        for answer in probe["answers"]:
            words = normalize(answer).split()
            assert not re.fullmatch(r"\d{1,2}", answer) and not set(words) <= {*NUMBERS, "the"}, probe
            assert not re.fullmatch("[가-힣]", answer) and not KOREAN_NUMBERS.fullmatch(answer), probe


@pytest.mark.parametrize("language", FILES)
def test_general_questions_and_worked_examples(language):
    general = load_probes(str(DATA / f"general_{language}.json"))
    assert len({p["record_id"] for p in general}) == len({normalize(p["question"]) for p in general}) == 100
    korean = "korea|joseon|goryeo|silla|seoul|hangul|한국|우리나라|조선|고려|신라|백제|서울|한글|세종"
    assert not [probe for probe in general if re.search(korean, str(probe), re.I)]
    examples = load_few_shot_examples(str(DATA / f"few_shots_{language}.json"))
    assert [e["topic"] for e in json.loads((DATA / f"few_shots_{language}.json").read_text())] == [
        "food",
        "history",
        "tradition",
    ]
    assert not any(re.search("according to|background|배경지식|에 따르면", answer, re.I) for _, answer in examples)


RECIPES = sorted((DATA.parent / "recipes" / "qwen3-4b" / "lupi_skd").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_have_the_persona_and_the_files_of_one_language(recipe):
    keys = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    [language] = [language for language, name in FILES.items() if keys["dataset_name"] == f"data/{name}"]
    persona = (DATA / f"persona_{language}.txt").read_text(encoding="utf-8")
    assert keys["teacher_system_prompt"] == persona.strip()
    assert keys["probes"] == f"data/probes_{language}.json"
    assert keys["few_shot_examples"] == f"data/few_shots_{language}.json"
    forbidden = {
        "ko": "배경지식.*언급하거나 내비치지 않으며.*'~에 따르면'",
        "en": 'Never mention.*background knowledge.*"according to"',
    }
    assert re.search(forbidden[language], persona)


@pytest.mark.skipif(not PREDECESSOR.is_dir(), reason="the predecessor's files are not beside this checkout")
@pytest.mark.parametrize("language", FILES)
def test_nothing_is_copied_from_the_predecessor(language):
    theirs = set()
    for text in texts_of(read_records(PREDECESSOR / FILES[language])):
        theirs |= runs(text, language)
    for path in (DATA / name for name in sorted(FILES_OF[language])):
        texts = [path.read_text(encoding="utf-8")] if path.suffix == ".txt" else texts_of(read_records(path))
        assert not [text for text in texts if runs(text, language) & theirs], path.name
