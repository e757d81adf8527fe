"""Special tokens in the text of records are refused wherever records are read, unless they are allowed."""

import json

import pytest
from tokenizers import normalizers
from trl import ModelConfig

from lupi_trainer.cli import main
from lupi_trainer.data.special_tokens import SpecialTokens, tokenize_open
from lupi_trainer.evaluation import closed_book
from lupi_trainer.lab import load_lab_records
from lupi_trainer.scripts import sft, wmtp
from tests.kd_lora.training import lab_tokenizer
from tests.lupi_skd.training import make_trainer
from tests.models.families import train_tokenizer


BAD = "Tamo<|end|>"
REFUSED = r"record .*: its text holds the special token '<\|end\|>'.*`allow_special_tokens`"


def test_what_is_special_is_the_tokenizers_to_say():
    tokenizer = train_tokenizer(["Q A xy"], vocab_size=300)
    tokenizer.add_tokens("<think>")
    special = SpecialTokens(tokenizer)
    special.check("r", "a <b> <think> <|im_start", None, "")
    with pytest.raises(ValueError, match=r"r: its text holds the special token '<\|im_start\|>'"):
        special.check("r", "fine", "not <|im_start|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<TURN>"]})
    tokenizer.split_special_tokens = True
    SpecialTokens(tokenizer).check("r", "<|im_start|>")  # this tokenizer reads it as text
    SpecialTokens(None).check("r", "<|im_start|>")


def test_a_token_that_normalization_spells_out_is_found():
    from tokenizers import AddedToken

    tokenizer = train_tokenizer(["Q A xy"], vocab_size=300)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<turn>", normalized=True, special=True)]})
    wide = "\uff1cturn\uff1e"
    assert tokenizer.convert_tokens_to_ids("<turn>") in tokenizer(wide)["input_ids"]
    with pytest.raises(ValueError, match="'<turn>'"):
        SpecialTokens(tokenizer).check("r", wide)


def test_every_trainer_refuses_the_record_by_name(tmp_path):
    records = load_lab_records("lab:new")[:8]
    for column in ("query", "knowledge"):
        bad = [*records[:5], {**records[5], "id": "bad", column: BAD}, *records[6:]]
        with pytest.raises(ValueError, match=REFUSED):
            make_trainer(tmp_path, train_dataset=bad)
    make_trainer(tmp_path, train_dataset=bad, config_allow_special_tokens=True)
    probe = {**load_lab_records("lab:probes")[0], "question": BAD}
    with pytest.raises(ValueError, match="probe of " + REFUSED):
        make_trainer(tmp_path, probes=[probe])
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([*records[:2], {**records[2], "answer": BAD}]))
    args = sft.make_parser().parse_args_and_config(
        ["--dataset_name", str(path), "--model_name_or_path", "lab:student", "--bf16", "false"]
    )
    with pytest.raises(ValueError, match="record number 2: its text holds"):
        sft.build_trainer(*args)
    data = wmtp.WMTPArguments(algo="mtp-baseline", dataset_name=str(path))
    with pytest.raises(ValueError, match="record number 2: its text holds"):
        wmtp.build_trainer(data, args[1], ModelConfig("lab:student"))


def test_a_streamed_record_is_refused_when_it_is_read(tmp_path):
    from datasets import Dataset

    records = [{**record, "knowledge": BAD} for record in load_lab_records("lab:new")[:8]]
    trainer, _ = make_trainer(tmp_path, train_dataset=Dataset.from_list(records).to_iterable_dataset())
    with pytest.raises(ValueError, match=REFUSED):
        trainer.train()


def test_the_commands_refuse_it_before_they_load_a_model(tmp_path, capsys, monkeypatch, student):
    probe = {**load_lab_records("lab:probes")[0], "question": BAD}
    with pytest.raises(ValueError, match="probe of " + REFUSED):
        closed_book(student, lab_tokenizer(), [probe])
    closed_book(student, lab_tokenizer(), [probe], allow_special_tokens=True, max_new_tokens=1)
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([{"id": "fine", "prompt": "Who?"}, {"id": "bad", "prompt": BAD}]))
    run = [
        "generate",
        "--target",
        "lab:student",
        "--draft",
        "prompt-lookup",
        "--prompts",
        str(path),
        "--device",
        "cpu",
    ]
    assert main([*run, "--max_new_tokens", "2", "--allow_special_tokens"]) == 0
    monkeypatch.setattr("lupi_trainer.models.loading.load_model", None)
    assert main(run) == 2
    assert "record 'bad': its text holds the special token '<|end|>'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("single, before", [("$A", []), ("<|im_start|> $A <|im_end|>", [1]), ("$A <|im_end|>", [])])
def test_a_text_that_goes_on_has_its_beginning_once_and_no_end(single, before):
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer(["Q A xy"], vocab_size=300)
    specials = [("<|im_start|>", 1), ("<|im_end|>", 2)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=specials)
    plain = tokenizer("xy", add_special_tokens=False)["input_ids"]
    rows = tokenize_open(tokenizer, ["xy", "<|im_start|>xy", "xy<|im_end|>"])
    assert rows == [before + plain, [1, *plain], [*before, *plain, 2]]


def test_where_a_tokenizer_writes_its_text_otherwise_alone_nothing_counts_as_a_beginning():
    class Spaced(type(train_tokenizer(["a"], vocab_size=300))):
        """Without special tokens, a text is written with a space before it."""

        def __call__(self, text, add_special_tokens=True, **options):
            texts = [text] if isinstance(text, str) else text
            texts = texts if add_special_tokens else [f" {text}" for text in texts]
            found = super().__call__(texts, add_special_tokens=add_special_tokens, **options)
            return {"input_ids": found["input_ids"][0] if isinstance(text, str) else found["input_ids"]}

    plain = train_tokenizer(["a b a b"], vocab_size=300)
    spaced = Spaced(tokenizer_object=plain.backend_tokenizer)
    assert spaced("a")["input_ids"] != spaced("a", add_special_tokens=False)["input_ids"]
    assert tokenize_open(spaced, ["a"]) == [plain(" a", add_special_tokens=False)["input_ids"]]
