"""Gold answers: as tokens, as the text that is trained on, and as cross-entropy beside the divergence."""

from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch.nn.functional import kl_div, log_softmax

from lupi_trainer.data.gold import gold_texts
from lupi_trainer.data.prompts import Words, encode
from lupi_trainer.data.turns import turns_of
from lupi_trainer.lab import load_lab_records
from tests.lupi_skd.training import make_trainer
from tests.teachers.vllm_stand_in import VLLMStandIn


NEW, OLD = load_lab_records("lab:new"), load_lab_records("lab:common")
RECORDS = [NEW[0], NEW[200], OLD[0], OLD[300]]
ROOM = {"config_max_completion_length": 56, "config_max_steps": 2}


def without_answer(record: dict) -> dict:
    return {key: value for key, value in record.items() if key != "answer"}


def states(model, tokenizer, trainer, row, ids, of_teacher=False):
    """[T, V] log-probabilities of each token of a text after a record's prompt, read without padding or a cache."""
    messages = row["prompt"]
    if of_teacher:
        messages = trainer.teacher_prompt.messages(messages, row["privileged_context"])
    prompt = encode(tokenizer, [messages])[0]
    with torch.set_grad_enabled(not of_teacher):
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return log_softmax(logits.float(), -1)


def reference(trainer, teacher, tokenizer, rows, texts, answers, alpha: float) -> torch.Tensor:
    """The documented formula, a record at a time."""
    divergence, entropy, n, g, shared = torch.zeros(()), torch.zeros(()), 0, 0, 0
    for row, ids, answer in zip(rows, texts, answers):
        log_q = states(trainer.model, tokenizer, trainer, row, ids)
        log_p = states(teacher, tokenizer, trainer, row, ids, of_teacher=True)
        its = kl_div(log_q, log_p, log_target=True, reduction="sum")
        divergence = divergence + (1 - alpha if answer else 1.0) * its
        n += len(ids)
        if answer:
            shared, g = shared + len(ids), g + len(answer)
            log_q = states(trainer.model, tokenizer, trainer, row, answer)
            entropy = entropy - log_q[torch.arange(len(answer)), torch.tensor(answer)].sum()
    return divergence / n + alpha * shared / n * entropy / max(g, 1)


def loss_of(trainer, rows) -> tuple[torch.Tensor, dict]:
    trainer.model.train()
    batch = trainer.roll_out(rows)
    loss, *_ = trainer.distillation_loss(trainer.model, batch, batch["num_items_in_batch"])
    loss.backward()
    return loss.detach(), batch


@pytest.mark.parametrize(
    "policy, answered, alpha",
    [
        *(("gold", (0, 1, 2, 3), alpha) for alpha in (0.0, 0.3, 1.0)),
        *(("speculative", answered, alpha) for answered in ((0, 1, 2, 3), (1, 2)) for alpha in (0.0, 0.3, 1.0)),
        ("speculative", (), 0.0),
    ],
)
@pytest.mark.grid(3)
def test_the_loss_is_the_formula(tmp_path, teacher, tokenizer, policy, answered, alpha):
    """And its gradient; rows without an answer have the divergence alone."""
    records = [one if n in answered else without_answer(one) for n, one in enumerate(RECORDS)]
    options = {"config_gold_alpha": alpha, "config_rollout_policy": policy}
    trainer, _ = make_trainer(tmp_path, train_dataset=records, **ROOM, **options)
    rows = [trainer.train_dataset[n] for n in range(4)]
    loss, batch = loss_of(trainer, rows)
    found = [p.grad.clone() for p in trainer.model.parameters()]
    trainer.model.zero_grad()
    texts = [ids[mask.bool()].tolist() for ids, mask in zip(batch["completion_ids"], batch["completion_mask"])]
    answers = gold_texts(Words(tokenizer), rows)
    assert policy != "gold" or texts == answers
    expected = reference(trainer, teacher, tokenizer, rows, texts, answers, alpha)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), atol=1e-5, rtol=1e-5)
    for ours, parameter in zip(found, trainer.model.parameters()):
        torch.testing.assert_close(ours, parameter.grad, atol=1e-5, rtol=1e-4)


def test_an_answer_is_what_a_finished_conversation_has(tokenizer):
    rows = [{"prompt": [{"role": "user", "content": one["query"]}], "answer": one["answer"]} for one in RECORDS]
    rows.insert(1, {"prompt": rows[0]["prompt"], "answer": None})
    found = gold_texts(Words(tokenizer), rows)
    assert found[1] is None
    for row, ids in zip(rows, found):
        if ids is not None:
            assert tokenizer.decode(ids[:-1]) == row["answer"] and ids[-1] == tokenizer.eos_token_id
            turns = [*row["prompt"], {"role": "assistant", "content": row["answer"]}]
            whole = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
            assert whole == encode(tokenizer, [row["prompt"]])[0] + ids


def test_a_template_that_has_no_place_for_an_answer_is_named(tokenizer, monkeypatch):
    row = {"id": "x", "prompt": [{"role": "user", "content": "Who?"}], "answer": "He."}
    template = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}Fova{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(ValueError, match="record 'x': .*does not write an `answer` right after the prompt"):
        gold_texts(Words(tokenizer), [row])
    plain = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", plain)
    ids = gold_texts(Words(tokenizer), [row])[0] or []
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.decode(ids[:-1]) == "He.|"


@pytest.mark.parametrize("options", [{"config_rollout_policy": "gold"}, {"config_gold_alpha": 0.5}], ids=str)
def test_what_cannot_be_trained_on_is_named_before_anything_is_loaded(tmp_path, options):
    refused = [{**NEW[1], "answer": "It has " + "the capital Kuzu " * 20}]
    with pytest.raises(ValueError, match="record 'Fova_.*': its answer has .* beyond max_completion_length=56"):
        make_trainer(tmp_path, train_dataset=NEW[:1] + refused + NEW[2:8], **ROOM, **options)
    with pytest.raises(ValueError, match="`answer` must be text or null, got list"):
        make_trainer(tmp_path, train_dataset=[{**NEW[0], "answer": ["a"]}] * 8, **ROOM, **options)
    bare = [without_answer(one) for one in NEW[:8]]
    with pytest.raises(ValueError, match="no training record has an `answer`|'Fova_capital_0': it has no `answer`"):
        make_trainer(tmp_path, train_dataset=bare, **ROOM, **options)
    with pytest.raises(ValueError, match="its text holds the special token '<.end.>'"):
        make_trainer(tmp_path, train_dataset=[{**NEW[0], "answer": "It <|end|> ends"}] * 8, **ROOM, **options)
    assert not (tmp_path / "run").exists()


def test_gold_needs_an_answer_of_every_record_also_to_evaluate(tmp_path):
    gold = {"config_rollout_policy": "gold", **ROOM}
    with pytest.raises(ValueError, match="it has no `answer`, which rollout_policy='gold' trains on"):
        make_trainer(tmp_path, train_dataset=NEW[:7] + [without_answer(NEW[7])], **gold)
    trainer, _ = make_trainer(tmp_path, train_dataset=NEW[:8], eval_dataset=NEW[8:12], **gold)
    assert 0 < trainer.evaluate()["eval_loss"] < 10
    with pytest.raises(ValueError, match="it has no `answer`"):
        trainer.evaluate([without_answer(NEW[0])])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"gold_alpha": 1.5}, r"gold_alpha must be in \[0, 1\]"),
        (
            {"rollout_policy": "gold", "record_rollouts": 2},
            "record_rollouts=2 has nothing to show with rollout_policy",
        ),
        ({"rollout_policy": "gold", "log_rollout_blocks": True}, "log_rollout_blocks=True has nothing to show"),
        (
            {
                "rollout_policy": "gold",
                "teachers": {"law": {"model_server_url": "http://localhost:1"}, "food": {"model_name_or_path": "x"}},
            },
            "rollout_policy='gold' with several teachers wants all of them loaded here: leave out the server of law",
        ),
        (
            {"rollout_policy": "gold", "base_teacher": "student", "teacher_model_server_url": "http://localhost:1"},
            "wants all of them loaded here: leave out the server of teacher",
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_go_with_gold_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **{f"config_{key}": value for key, value in options.items()})


def test_the_evaluation_s_loss_is_the_divergence_alone(tmp_path):
    """So that it can be compared whatever `gold_alpha` is."""
    losses = []
    for alpha in (0.0, 0.7):
        options = {"config_gold_alpha": alpha, "config_rollout_policy": "gold"}
        trainer, _ = make_trainer(tmp_path / str(alpha), train_dataset=NEW[:8], **ROOM, **options)
        losses.append(trainer.evaluate(NEW[8:12])["eval_loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("policy", ["student", "gold"])
@pytest.mark.grid(2)
def test_accumulated_batches_give_the_loss_of_one(tmp_path, policy):
    """Though answers are unevenly spread over them."""
    records = [one if n in (0, 1, 4) or policy == "gold" else without_answer(one) for n, one in enumerate(NEW[:8])]
    logs = []
    for batch, steps in ((8, 1), (2, 4), (1, 8)):
        trainer, losses = make_trainer(
            tmp_path / str(batch),
            train_dataset=records,
            config_per_device_train_batch_size=batch,
            config_gradient_accumulation_steps=steps,
            config_gold_alpha=0.4,
            config_rollout_policy=policy,
            **ROOM,
        )
        trainer.train()
        logs.append([log[key] for log in losses.logs for key in ("loss", "loss/gold", "grad_norm")])
    assert logs[1] == pytest.approx(logs[0], rel=1e-3) and logs[2] == pytest.approx(logs[0], rel=1e-3)


def test_a_student_that_teaches_itself_reads_the_knowledge_and_the_answer(tmp_path, student, tokenizer):
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    options = {"config_gold_alpha": 0.3, "config_rollout_policy": "gold", "config_max_teacher_prompt_length": 100}
    trainer, _ = make_trainer(tmp_path, teacher_model=None, peft_config=lora, train_dataset=OLD[:8], **ROOM, **options)
    rows = [trainer.train_dataset[n] for n in range(4)]
    answers = gold_texts(Words(tokenizer), rows)
    loss, _ = loss_of(trainer, rows)
    torch.testing.assert_close(loss, reference(trainer, student, tokenizer, rows, answers, answers, 0.3).detach())
    assert loss > 0.05  # of an adapter that is not at its start


def test_a_remote_teacher_reads_the_answer_as_one_here_does(tmp_path, teacher, tokenizer):
    losses = []
    with VLLMStandIn(teacher, tokenizer, max_logprobs=-1) as server:
        for there in (False, True):
            where = {"teacher_model": None, "config_teacher_model_server_url": server.url, "config_loss_top_k": 568}
            options = {"config_rollout_policy": "gold", "config_gold_alpha": 0.2, **(where if there else {})}
            trainer, log = make_trainer(tmp_path / str(there), train_dataset=RECORDS * 2, **ROOM, **options)
            asked = len(server.requests)
            trainer.train()
            losses.append(log.losses)
            assert all("logprob_token_ids" not in body for body in server.requests[asked:] if len(body["prompt"]) > 48)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_of_a_dialogue_the_last_turn_has_the_answer():
    prompt = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    rows = turns_of({"prompt": prompt, "answer": "gold"})
    assert [row["answer"] for row in rows] == [None, "gold"]
    assert all("answer" not in row for row in turns_of({"prompt": prompt}))


def test_the_measures_of_an_open_interval_survive_a_kill(tmp_path):
    """`loss/gold` is a mean over all steps since the last log, resumed or not."""
    options: dict[str, Any] = {"config_gold_alpha": 0.5, "config_logging_steps": 4, "config_save_steps": 2}
    options |= {"config_max_completion_length": 56, "config_save_strategy": "steps", "train_dataset": NEW[:40]}
    options |= {"config_rollout_policy": "gold", "config_max_steps": 4}
    trainer, whole = make_trainer(tmp_path, **options)
    trainer.train()
    trainer, resumed = make_trainer(tmp_path, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.logs[-1]["loss/gold"] == pytest.approx(whole.logs[-1]["loss/gold"], rel=1e-6)
