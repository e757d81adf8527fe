"""A whole training step against TRL's `DistillationTrainer` that is given the same privileged teacher prompt."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, PrinterCallback
from trl import DistillationConfig, DistillationTrainer

from lupi_trainer import LUPISKDConfig, LUPISKDTrainer
from lupi_trainer.data.prompts import TeacherPrompt, encode
from lupi_trainer.training.private import pad
from tests.benchmarks.measure import row, take_turns
from tests.benchmarks.setting import Scripted, Setting


class PrivilegedDistillation(DistillationTrainer):
    """On-policy distillation whose teacher reads the knowledge: what a TRL user would write without this package."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        messages = [TeacherPrompt().messages(row["prompt"], row["privileged_context"]) for row in inputs]
        ids = [torch.tensor(row) for row in encode(self.processing_class, messages)]
        output["teacher_ids"] = pad(ids, self._tokenizer.pad_token_id, "left")
        output["teacher_mask"] = pad([torch.ones_like(row) for row in ids], 0, "left")
        return output

    def _compute_loss(self, unwrapped_student, inputs, num_items_in_batch):
        self._inputs = inputs
        return super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)

    def _get_last_hidden_state(self, model, input_ids, attention_mask, logits_to_keep, **kwargs):
        if model is self.teacher_model:
            input_ids = torch.cat([self._inputs["teacher_ids"], self._inputs["completion_ids"]], dim=1)
            attention_mask = torch.cat([self._inputs["teacher_mask"], self._inputs["completion_mask"]], dim=1)
        return super()._get_last_hidden_state(model, input_ids, attention_mask, logits_to_keep, **kwargs)


def make_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    words = ["<unk>", "<pad>", "<end>", "<user>", "<assistant>", "Background", "Knowledge", "[", "]"]
    words += [f"w{n}" for n in range(vocab - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    fast.chat_template = (
        "{% for m in messages %}{{ ' <' + m['role'] + '> ' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
    )
    return fast


def make_data(setting: Setting) -> Dataset:
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> str:
        return " ".join(f"w{n}" for n in torch.randint(0, setting.vocab - 9, (count,), generator=generator).tolist())

    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": words(setting.student_prompt - 2)}],
                "privileged_context": words(setting.teacher_prompt - setting.student_prompt - 2),
            }
            for _ in range(setting.rows)
        ]
    )


def training_step(setting: Setting, repeats: int) -> Iterator[dict]:
    """One optimizer step each: rollout, both models' states, divergence, backward, update."""
    data, tokenizer = make_data(setting), make_tokenizer(setting.vocab)
    common = {
        "per_device_train_batch_size": setting.rows,
        "max_steps": 1,
        "max_completion_length": setting.new_tokens,
        "use_cpu": setting.device == "cpu",
        "learning_rate": 1e-4,
        "beta": 0.0,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "report_to": "none",
    }
    with tempfile.TemporaryDirectory() as folder:

        def models():
            return setting.model("student"), setting.model("teacher")

        def ours(name, **options):
            args = LUPISKDConfig(str(Path(folder, name)), **common, **{"gamma": setting.gamma, **options})
            trainer = LUPISKDTrainer(*models(), args, train_dataset=data, processing_class=tokenizer)
            trainer._acceptance = lambda: Scripted(setting.acceptance)
            trainer.remove_callback(PrinterCallback)
            return trainer.train

        peer = PrivilegedDistillation(
            *models(),
            DistillationConfig(str(Path(folder, "peer")), **common),
            train_dataset=data,
            processing_class=tokenizer,
        )
        peer.remove_callback(PrinterCallback)
        chosen = {"gamma": 8, "gamma_policy": "goodput", "compile_rollout": True}
        kept = {"teacher_prompt_cache_mb": 4096}
        contenders = {
            "TRL": peer.train,
            "ours": ours("ours"),
            "compiled": ours("compiled", **chosen),
            "second epoch": ours("kept", **chosen | kept | {"compile_rollout": False}),
            "second epoch, compiled": ours("compiled and kept", **chosen | kept),
        }
        seconds = take_turns(contenders, repeats)
    yield row("training step, time over TRL with this prompt", seconds, "ours", "TRL", "<=", 1.0)
    yield row("the same, compiled", seconds, "compiled", "TRL", "<=", 1.0)
    yield row("training step whose teacher's prompts are kept", seconds, "second epoch", "TRL", "<=", 1.0)
    yield row("the same, compiled", seconds, "second epoch, compiled", "TRL", "<=", 0.8)
