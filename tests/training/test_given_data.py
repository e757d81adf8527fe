"""`evaluate` and `predict` take what the constructor takes, check it as it does, and give the same loss."""

import pytest
from datasets import Dataset, DatasetDict
from trl import ModelConfig, SFTConfig

from lupi_trainer.data.records import load_sft_data, prepare_columns
from lupi_trainer.evaluation import perplexity
from lupi_trainer.lab import load_lab_records
from lupi_trainer.scripts import sft
from lupi_trainer.training.given_data import as_dataset
from tests.kd_lora.training import make_kd_trainer
from tests.lupi_skd.training import make_trainer
from tests.wmtp.training import make_wmtp_trainer


RECORDS = [{k: r[k] for k in ("id", "query", "knowledge")} for r in load_lab_records("lab:eval")[:6]]
TEXTS = [{"id": r["id"], "prompt": r["query"], "privileged_context": r["knowledge"]} for r in RECORDS]
FORMS = {
    "list": RECORDS,
    "dataset": Dataset.from_list(RECORDS),
    "texts": Dataset.from_list(TEXTS),
    "stream": Dataset.from_list(TEXTS).to_iterable_dataset(),
    "messages": prepare_columns(RECORDS),
    "dict": DatasetDict({"a": Dataset.from_list(TEXTS), "b": Dataset.from_list(RECORDS)}),
    "dict of lists": {"a": TEXTS},
}


def losses(metrics: dict[str, float], prefix: str) -> list[float]:
    return [value for key, value in metrics.items() if key.startswith(prefix) and key.endswith("_loss")]


@pytest.mark.slow
def test_records_in_any_form_give_the_loss_of_the_constructor_s_own(tmp_path):
    trainer, _ = make_trainer(tmp_path, eval_dataset=RECORDS)
    expected = trainer.evaluate()["eval_loss"]
    assert expected > 0
    for name, data in FORMS.items():
        assert losses(trainer.evaluate(data), "eval") == pytest.approx([expected] * (1 + (name == "dict"))), name
        predicted = trainer.predict(data)
        parts = predicted.items() if isinstance(data, dict) else [("", predicted)]
        for part, output in parts:
            assert output.metrics[f"test_{part}_loss" if part else "test_loss"] == pytest.approx(expected), name
        trainer, _ = make_trainer(tmp_path, eval_dataset=data)
        if name == "dict":
            assert trainer.predict("b").metrics["test_loss"] == pytest.approx(expected)
        assert losses(trainer.evaluate(), "eval") == pytest.approx([expected] * (1 + (name == "dict"))), name


def test_records_are_checked_as_in_the_constructor(tmp_path):
    trainer, _ = make_trainer(tmp_path)
    long = {**RECORDS[2], "knowledge": RECORDS[2]["knowledge"] * 20}
    for give in (trainer.evaluate, trainer.predict, lambda data: trainer.evaluate({"a": RECORDS, "b": data})):
        with pytest.raises(ValueError, match=f"{long['id']}.*max_teacher_prompt_length"):
            give([*RECORDS[:2], long])
        with pytest.raises(ValueError, match=r"record 'x' \(number 1\): the prompt is empty"):
            give([RECORDS[0], {"id": "x", "query": "", "knowledge": "k"}])
        with pytest.raises(ValueError, match="no column.*privileged_context"):
            give(Dataset.from_list([{"prompt": "q"}]))
    for give in (trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match="no evaluation set 'b': `eval_dataset` has no names"):
            give("b")


def test_workers_that_stay_read_what_is_given(tmp_path):
    trainer, _ = make_trainer(
        tmp_path, eval_dataset=RECORDS, config_dataloader_num_workers=1, config_dataloader_persistent_workers=True
    )
    own, other = trainer.evaluate()["eval_loss"], RECORDS[::-1][:3]
    found = [trainer.evaluate(other)["eval_loss"], trainer.predict(other).metrics["test_loss"]]
    assert found == pytest.approx([found[0]] * 2) and abs(found[0] - own) > 1e-3
    assert trainer.evaluate()["eval_loss"] == pytest.approx(own)


def make_sft_trainer(tmp_path, model_args=None, **settings):
    model_args = model_args or ModelConfig("lab:student")
    config = {"max_length": 128} | {k.removeprefix("config_"): value for k, value in settings.items()}
    args = SFTConfig(str(tmp_path / "run"), bf16=False, use_cpu=True, report_to="none", **config)
    return sft.build_trainer(sft.SFTDataArguments("lab:common"), args, model_args), None


@pytest.mark.parametrize("make", [make_kd_trainer, make_wmtp_trainer])
def test_a_limit_that_leaves_nothing_to_learn_is_named(tmp_path, caplog, make):
    texts = load_sft_data("lab:common").select(range(8))
    message = "train dataset: max_length=5 cuts away all that its 8 rows have to learn, which have (.+) to (.+) tokens"
    for packing in (False, True):
        with pytest.raises(ValueError, match=message) as error:
            make(tmp_path, train_dataset=texts, config_max_length=5, config_packing=packing)
    longest = int(error.value.args[0].split("max_length=")[2].split()[0])
    trainer, _ = make(tmp_path, train_dataset=texts, config_max_length=longest)
    assert max(map(len, trainer.train_dataset["input_ids"])) == longest and len(trainer.train_dataset) == 8
    assert "left out" not in caplog.text
    longer = {**texts[0], "prompt": [{"role": "user", "content": "Who is Tamo of Gora? " * 9}]}
    make(tmp_path, train_dataset=[*texts, longer], config_max_length=longest)
    assert f"train dataset: 1 of 9 rows are left out, since max_length={longest} cuts" in caplog.text
    unlabeled = [{"input_ids": [5, 6, 7], "labels": [-100] * 3}] * 4
    with pytest.raises(ValueError, match="train dataset: no token of its 4 rows is labeled"):
        make(tmp_path, train_dataset=unlabeled)
    for given in ([longer], {"a": [longer]}):
        with pytest.raises(ValueError, match=f"(eval|a) dataset: max_length={longest} cuts away"):
            make(tmp_path, train_dataset=texts, config_max_length=longest, eval_dataset=given)
    trainer, _ = make(tmp_path, train_dataset=texts.to_iterable_dataset(), config_max_length=5)
    with pytest.raises(RuntimeError, match="nothing was trained: the stream of records ended"):
        trainer.train()
    trainer.args.max_length = 5
    with pytest.raises(ValueError, match="max_length=5 cuts away"):
        trainer.evaluate(texts)


@pytest.mark.parametrize("make", [make_kd_trainer, make_wmtp_trainer, make_trainer])
def test_what_is_no_dataset_is_refused(tmp_path, make):
    kind = "of dictionaries" if make is make_trainer else "of records"
    data = RECORDS if make is make_trainer else load_sft_data("lab:common").select(range(4)).to_list()
    trainer, _ = make(tmp_path, train_dataset=data)
    for wrong in ("lab:new", tuple(data)):
        for key in ("train_dataset", "eval_dataset"):
            with pytest.raises(TypeError, match=f"list {kind}.*, got a {type(wrong).__name__}"):
                make(tmp_path, **{"train_dataset": data, key: wrong})
    for give in (trainer.evaluate, trainer.predict):
        with pytest.raises(TypeError, match=f"list {kind}.*, got a tuple"):
            give(tuple(data))
        for empty in ([], Dataset.from_list(data).select([])):
            with pytest.raises(ValueError, match="the dataset is empty"):
                give(empty)
        with pytest.raises((TypeError, ValueError), match="dictionar"):
            give(["a text"])
        with pytest.raises(ValueError, match="_dataset is empty: it has no dataset"):
            give({})
        with pytest.raises(TypeError, match=r"_dataset\['b'\] is None: give a dataset, or leave 'b' out"):
            give({"a": data, "b": None})
    with pytest.raises(TypeError, match="test_dataset is None: give what is to be predicted"):
        trainer.predict(None)
    for nothing in ({}, {"b": None}):
        with pytest.raises((TypeError, ValueError), match="eval_dataset(\\['b'\\] is None| is empty)"):
            make(tmp_path, train_dataset=data, eval_dataset=nothing)


@pytest.mark.parametrize("make", [make_kd_trainer, make_wmtp_trainer, make_sft_trainer])
@pytest.mark.grid(3)
def test_texts_are_tokenized_for_predictions_too(tmp_path, make):
    texts = load_sft_data("lab:common").select(range(6))
    trainer, _ = make(tmp_path, config_max_length=128)
    expected = trainer.evaluate(texts)["eval_loss"]
    trainer.args.prediction_loss_only = True
    assert trainer.predict(texts).metrics["test_loss"] == pytest.approx(expected)
    assert trainer.predict({"a": texts})["a"].metrics["test_a_loss"] == pytest.approx(expected)
    for rows in (texts.to_list(), {"a": texts.to_list()}):
        assert losses(trainer.evaluate(rows), "eval") == pytest.approx([expected])
    assert trainer.predict(texts.to_list()).metrics["test_loss"] == pytest.approx(expected)
    tokens = trainer.train_dataset[0]["input_ids"]
    constructors = [lambda data: make(tmp_path, train_dataset=data), lambda data: make(tmp_path, eval_dataset=data)]
    for wrong in (len(trainer.processing_class), 10**6, -1):
        rows = [{"input_ids": tokens, "labels": tokens}] * 3
        for column in ("input_ids", "labels"):
            raw = [*rows, {**rows[0], column: [*tokens[:-1], wrong]}]
            for give in (
                trainer.evaluate,
                trainer.predict,
                lambda data: trainer.evaluate({"b": data}),
                *(constructors if make is not make_sft_trainer else ()),
            ):
                with pytest.raises(ValueError, match=f"row number 3 holds the token id {wrong}, but .* from 0 to "):
                    give(Dataset.from_list(raw))
        stream = Dataset.from_list(raw).to_iterable_dataset()
        for give in (trainer.evaluate, trainer.predict):
            with pytest.raises(ValueError, match=f"a row of the stream holds the token id {wrong}, but"):
                give(stream)
        if make is not make_sft_trainer:
            streaming, _ = make(tmp_path, train_dataset=stream, eval_dataset={"a": stream})
            for read in (streaming.train, streaming.evaluate):
                with pytest.raises(ValueError, match=f"a row of the stream holds the token id {wrong}, but"):
                    read()
    uneven = [{"input_ids": tokens, "labels": tokens}] * 2 + [{"input_ids": tokens, "labels": tokens[1:]}]
    for give in (trainer.evaluate, trainer.predict, *(constructors if make is not make_sft_trainer else ())):
        with pytest.raises(ValueError, match=f"row number 2 has {len(tokens)} tokens and {len(tokens) - 1} labels"):
            give(Dataset.from_list(uneven))
    if make is make_kd_trainer:
        tokens = trainer.train_dataset[0]["input_ids"] * 9
        long = Dataset.from_list([{"input_ids": tokens, "labels": tokens}])
        for give in (trainer.evaluate, trainer.predict):
            with pytest.raises(ValueError, match="row number 0 has .* it would lose"):
                give(long)


@pytest.mark.parametrize("make", [make_kd_trainer, make_wmtp_trainer, make_trainer])
def test_a_token_that_the_models_lack_is_refused_only_where_a_text_has_it(tmp_path, tokenizer, make):
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    if make is make_trainer:
        records = load_lab_records("lab:new")[:4]
        seen = [*records[:3], {**records[3], "knowledge": records[3]["knowledge"] + " <image>"}]
        message = f"record '{records[3]['id']}': its teacher prompt holds the token '<image>' .id {len(tokenizer) - 1}"
    else:
        rows = load_sft_data("lab:common").select(range(4)).to_list()
        answer = [{"role": "assistant", "content": "<image>"}]
        records, seen = Dataset.from_list(rows), Dataset.from_list([*rows[:3], {**rows[3], "completion": answer}])
        message = f"row number 3 holds the token '<image>' .id {len(tokenizer) - 1}"
    settings = {"processing_class": tokenizer, "config_max_steps": 1}
    if make is make_trainer:
        settings["config_allow_special_tokens"] = True
    trainer, losses = make(tmp_path, train_dataset=records, **settings)
    trainer.train()
    assert losses.losses[0] > 0
    for give in (trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match=message):
            give(seen)
    with pytest.raises(ValueError, match=message):
        make(tmp_path, train_dataset=seen, **settings)


@pytest.mark.parametrize("make", [make_kd_trainer, make_wmtp_trainer, make_sft_trainer, make_trainer])
@pytest.mark.grid(2)
def test_batches_that_would_all_be_left_out_are_refused(tmp_path, make):
    data = RECORDS if make is make_trainer else load_sft_data("lab:common").select(range(6)).to_list()
    settings = {"config_dataloader_drop_last": True, "config_per_device_eval_batch_size": 4}
    trainer, _ = make(tmp_path, **settings)
    assert losses(trainer.evaluate(data), "eval")[0] > 0
    message = "the evaluation set has 3 rows, fewer than one batch of 4 .per_device_eval_batch_size=4, .*_drop_last"
    for give in (trainer.evaluate, trainer.predict, lambda few: trainer.evaluate({"a": data, "b": few})):
        with pytest.raises(ValueError, match=message):
            give(data[:3])
    if make is make_sft_trainer:
        return
    with pytest.raises(ValueError, match="the evaluation set 'b' has 3 rows"):
        make(tmp_path, eval_dataset={"a": data, "b": data[:3]}, config_eval_strategy="steps", **settings)
    with pytest.raises(ValueError, match="the training set has 3 r.*_train_batch_size=4"):
        make(tmp_path, train_dataset=data[:3], **settings)


def test_an_evaluation_of_texts_is_a_mean_over_its_tokens(tmp_path):
    texts = load_sft_data("lab:common").select(range(7)).to_list()
    for number, row in enumerate(texts):
        row["completion"][0]["content"] = " ".join([row["completion"][0]["content"]] * (1 + number % 3))
    trainer, _ = make_sft_trainer(tmp_path)
    (rows,) = [trainer.prepare_texts(as_dataset(texts, "t"), trainer.processing_class, trainer.args, False, None, "t")]
    expected = perplexity(trainer.model, rows).nll
    found = []
    for size in (1, 3, 7):
        trainer.args.per_device_eval_batch_size = size
        trainer.predict(texts[:1])  # leaves nothing in the next evaluation's figures
        metrics = trainer.evaluate(texts)
        assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5), size
        found.append([metrics["eval_entropy"], metrics["eval_mean_token_accuracy"]])
        assert trainer.state.log_history[-1]["eval_loss"] == metrics["eval_loss"]
    assert found[1:] == [pytest.approx(found[0], rel=1e-5)] * 2


def test_a_mask_that_would_not_be_read_is_refused(tmp_path):
    rows = [{"input_ids": [5, 6, 7, 8], "completion_mask": [0, 0, 1, 1]}] * 4
    with pytest.raises(ValueError, match="its `completion_mask` is read only with `completion_only_loss: true`"):
        make_kd_trainer(tmp_path, train_dataset=Dataset.from_list(rows))
    for only, labels in ((True, [-100, -100, 7, 8]), (False, [5, 6, 7, 8])):
        trainer, _ = make_kd_trainer(tmp_path, train_dataset=Dataset.from_list(rows), config_completion_only_loss=only)
        assert trainer.train_dataset[0]["labels"] == labels
