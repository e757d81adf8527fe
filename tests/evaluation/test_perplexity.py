"""Perplexity beside a plain loop over single records."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config

from lupi_trainer.data.squad import load_qa_records, tokenize_qa
from lupi_trainer.evaluation import perplexity
from tests.kd_lora.training import lab_tokenizer, make_kd_trainer
from tests.models.families import tiny_model
from tests.wmtp.training import make_wmtp_trainer


@pytest.fixture(scope="module")
def rows():
    tokenizer = lab_tokenizer()
    records = load_qa_records("lab:qa-eval", max_samples=11)
    for n, record in enumerate(records):
        record["answer"] = " ".join([record["answer"]] * (1 + n % 4))  # rows must not all weigh the same
    return tokenize_qa(records, tokenizer, seq_len=256).dataset


def by_loop(model, rows) -> tuple[float, int]:
    total, count = 0.0, 0
    for row in rows:
        logits = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        for place, label in enumerate(row["labels"][1:]):
            if label != -100:
                total -= logits[place, label].item()
                count += 1
    return math.exp(total / count), count


def models(tokenizer):
    torch.manual_seed(0)
    yield "llama", tiny_model("llama", tokenizer)
    yield "qwen3", tiny_model("qwen3", tokenizer)
    adapted = get_peft_model(tiny_model("llama", tokenizer), LoraConfig(r=4, task_type="CAUSAL_LM"))
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.3)
    yield "adapter", adapted
    capped = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=3.0,
    )
    capped = AutoModelForCausalLM.from_config(capped)
    capped.lm_head.weight.data.normal_(std=1.0)  # so that the cap is felt
    yield "softcap", capped


def test_equals_a_plain_loop_over_single_records(rows):
    tokenizer = lab_tokenizer()
    for name, model in models(tokenizer):
        model.eval()
        wanted, count = by_loop(model, rows)
        for batch_size in (1, 3, 64):
            got = perplexity(model.train(), rows, batch_size=batch_size)
            assert model.training, name
            assert got.perplexity == pytest.approx(wanted, rel=1e-5), name
            assert got.num_tokens == count and got.nll == pytest.approx(math.log(wanted), rel=1e-5)
            model.eval()


def test_trainer_and_command_say_the_same(rows, tmp_path):
    trainer, _ = make_kd_trainer(tmp_path, eval_dataset=rows, train_dataset=rows, config_per_device_eval_batch_size=4)
    assert trainer.evaluate()["eval_perplexity"] == pytest.approx(perplexity(trainer.model, rows).perplexity, rel=1e-5)


def test_an_adapter_on_the_head_is_refused_wherever_its_weight_is_read(rows, tmp_path):
    def adapted():
        config = LoraConfig(target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM", init_lora_weights=False)
        return get_peft_model(tiny_model("llama", lab_tokenizer()), config)

    with pytest.raises(ValueError, match="an adapter on the lm_head of PeftModelForCausalLM is not supported"):
        perplexity(adapted(), rows)
    teacher = adapted().get_base_model()  # a student's is refused by TRL
    with pytest.raises(ValueError, match="an adapter on the lm_head"):
        make_kd_trainer(tmp_path, teacher_model=teacher, processing_class=lab_tokenizer())
    for make in (make_kd_trainer, make_wmtp_trainer):
        with pytest.raises(ValueError, match="adapter to `lm_head` is not supported"):
            make(tmp_path, model=adapted(), peft_config=None, processing_class=lab_tokenizer())


def test_nothing_labeled_is_an_error():
    model = tiny_model("llama", lab_tokenizer())
    with pytest.raises(ValueError, match="no token is labeled"):
        perplexity(model, [{"input_ids": [5, 6], "labels": [-100, -100]}])


def test_rows_that_cannot_be_read_are_named():
    model = tiny_model("llama", lab_tokenizer())
    known = model.config.vocab_size
    good = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    for changes, said in (
        ({"input_ids": [5, 6, known]}, f"row number 1 holds the token id {known}; the model has those below {known}"),
        ({"labels": [-100, 6, known]}, f"row number 1 holds the token id {known}"),
        ({"labels": [-100, 6, -1]}, "row number 1 holds the token id -1"),
        ({"labels": [6, 7]}, "row number 1 has 3 tokens and 2 labels"),
    ):
        with pytest.raises(ValueError, match=said):
            perplexity(model, [good, {**good, **changes}])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        perplexity(model, [good], batch_size=0)


def test_every_id_of_the_vocabulary_counts_the_first_and_the_last_too():
    model = tiny_model("llama", lab_tokenizer())
    known = model.get_input_embeddings().num_embeddings
    ids = [3, 0, known - 1]
    assert perplexity(model, [{"input_ids": ids, "labels": ids}]).num_tokens == 2
    for strange in (-1, known):
        with pytest.raises(ValueError, match=f"row number 0 holds the token id {strange}; the model has those below"):
            perplexity(model, [{"input_ids": [3, strange], "labels": [3, 3]}])
