"""Trained heads draft for their model: what they were not trained on, too, and without a change to the text."""

import pytest
import torch

from lupi_trainer.data.prompts import encode
from lupi_trainer.data.records import load_sft_data
from lupi_trainer.speculative import HeadsDraft, speculative_generate
from lupi_trainer.wmtp import drafting
from tests.benchmarks.wmtp import split_islands
from tests.kd_lora.training import lab_tokenizer
from tests.wmtp.training import make_wmtp_trainer


@pytest.mark.slow
@torch.no_grad()
def test_heads_draft_answers_about_islands_that_they_have_not_seen(tmp_path):
    train, held_out = split_islands(load_sft_data("lab:common"), 18)
    trainer, _ = make_wmtp_trainer(
        tmp_path,
        train_dataset=train,
        config_freeze_trunk=True,
        config_head_type="linear",
        config_max_steps=60,
        config_per_device_train_batch_size=24,
        config_learning_rate=3e-3,
        config_logging_steps=1000,
    )
    with torch.enable_grad():
        trainer.train()
    model, tokenizer = trainer.model.eval(), lab_tokenizer()
    prompts = encode(tokenizer, [held_out[n]["prompt"] for n in (24, 55, 84, 90, 130)])  # three at length
    drafts = HeadsDraft(model, model.mtp_heads)
    output = speculative_generate(
        model, drafts, prompts, max_new_tokens=48, num_draft_tokens=3, eos_token_id=tokenizer.eos_token_id
    )
    assert output.stats.acceptance_length > 1.5
    for prompt, ours in zip(prompts, output.completion_ids):
        plain = model.generate(
            torch.tensor([prompt]), max_new_tokens=48, do_sample=False, eos_token_id=tokenizer.eos_token_id
        )
        assert ours == plain[0, len(prompt) :].tolist()


def test_drafts_end_where_the_model_ends_its_texts(tmp_path, monkeypatch):
    """At every token that its generation config names, not at the tokenizer's alone."""
    trainer, _ = make_wmtp_trainer(tmp_path, config_draft_eval_prompts=2, config_draft_eval_new_tokens=12)
    written = []

    def recorded(*args, **options):
        output = speculative_generate(*args, **options)
        written.append(output.completion_ids)
        return output

    monkeypatch.setattr(drafting, "speculative_generate", recorded)
    drafting.draft_metrics(trainer, trainer.train_dataset)
    ends = [text[2] for text in written[0]]
    trainer.model.generation_config.eos_token_id = ends
    drafting.draft_metrics(trainer, trainer.train_dataset)
    assert all(text[-1] in ends and len(text) <= 3 for text in written[1])
