"""KD-LoRA: distillation into a LoRA adapter, beside the cross-entropy on gold answers."""

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, IterableDataset
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTTrainer

from ..data.squad import TokenizedQA
from ..lab import resolve_model
from ..losses.chunked_kd import chunked_kd_ce
from ..models.backbone import labeled_states, teacher_states
from ..models.chat_template import adopt_chat_template
from ..models.head_check import check_head
from ..models.lm_head import Head
from ..models.loading import key_named, repository_options, resolve_student
from ..models.vocabulary import check_vocabularies
from ..publishing.papers import DISTILLATION, KD_LORA
from ..publishing.trainer import Published
from ..teachers.loaded import load_teacher, load_teacher_config, refuse_shared
from ..training.checkpoints import SealedCheckpoints
from ..training.finite_steps import FiniteSteps
from ..training.given_data import as_dataset
from ..training.log_sums import LogSums
from ..training.settings import check_run_settings, check_teacher_settings, one_name, require_config
from ..training.summed_loss import SummedLoss
from .config import KDLoRAConfig
from .quantization import quantization_kl


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig


SUMS = ("ce", "kd", "entropy", "correct", "labeled", "read")  # what is summed over tokens, in this order


def check_answers_fit(dataset: Dataset | IterableDataset | None, max_length: int | None) -> None:
    """Raise ValueError for a row with labels that TRL would cut, since labels are at the end (naming the row)."""
    columns = getattr(dataset, "column_names", None) or ()
    if max_length is None or not isinstance(dataset, Dataset) or not {"input_ids", "labels"} <= set(columns):
        return
    for number, ids in enumerate(dataset["input_ids"]):
        if len(ids) > max_length:
            raise ValueError(
                f"row number {number} has {len(ids)} tokens and labels: cut to max_length={max_length} it would lose "
                "its answer or a part of it; leave it out, or raise `max_length`"
            )


class KDLoRATrainer(Published, SealedCheckpoints, LogSums, FiniteSteps, SummedLoss, SFTTrainer):
    """
    Trainer for knowledge distillation into a LoRA adapter ([KD-LoRA](https://huggingface.co/papers/2410.20777)).

    The loss is `kd_alpha * T^2 * KL(teacher || student at T) + (1 - kd_alpha) * CE` over labeled tokens
    ([`~lupi_trainer.losses.kd_ce_loss`]), computed in chunks so that neither model's logits are built in full.
    Everything else is [`~trl.SFTTrainer`]'s. The two terms are logged apart as `loss/ce` and `loss/kd` (with its
    factor T^2, so that the weighted sum is the loss), and every evaluation has `eval_perplexity`, the exponential of
    the mean cross-entropy over all labeled tokens of the set.

    Example:

    ```python
    >>> from peft import LoraConfig
    >>> from lupi_trainer import KDLoRAConfig, KDLoRATrainer
    >>> from lupi_trainer.data.squad import load_qa_records, tokenize_qa

    >>> trainer = KDLoRATrainer(
    ...     model="lab:student",
    ...     teacher_model="lab:teacher",
    ...     args=KDLoRAConfig("adapter", gradient_accumulation_steps=1, max_steps=1, bf16=False, use_cpu=True),
    ...     train_dataset=tokenize_qa(load_qa_records("lab:qa")[:32], tokenizer, seq_len=256).dataset,
    ...     peft_config=LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM"),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The student.
        teacher_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            The teacher, frozen; `args.teacher_model_name_or_path` if omitted. It reads what the student reads.
        args ([`KDLoRAConfig`], *optional*):
            Configuration.
        train_dataset, eval_dataset, data_collator, processing_class, callbacks, optimizers, quantization_config,
        peft_config:
            As in [`~trl.SFTTrainer`].
        teacher_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The teacher's tokenizer, only to check that the vocabularies match. Loaded from the teacher's name if the
            teacher is given by name.

    Raises:
        `ValueError`: no teacher where one is needed, vocabularies that do not match, or an option that cannot work.
    """

    model_tags = ["trl", "kd-lora"]
    method_name = "KD-LoRA"
    _papers = (KD_LORA, DISTILLATION)
    args: KDLoRAConfig
    model: Any
    questions: dict[str, TokenizedQA]  # by split; of a trainer that a recipe has made

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        teacher_model: str | PreTrainedModel | None = None,
        args: KDLoRAConfig | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
        teacher_processing_class: PreTrainedTokenizerBase | None = None,
    ):
        require_config(args, KDLoRAConfig)
        model, name, args = resolve_student(model, args, lambda name: KDLoRAConfig(f"{name}-KD-LoRA"), peft_config)
        check_run_settings(args)
        train_dataset = as_dataset(train_dataset, "train_dataset")
        eval_dataset = as_dataset(eval_dataset, "eval_dataset")
        for dataset in (train_dataset, *(eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset])):
            check_answers_fit(dataset, args.max_length)
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(name, **repository_options(args))
        adopt_chat_template(args, model, processing_class)
        self.teacher_model, self.shared_vocab_size = None, None
        if args.use_kd and args.kd_alpha > 0:
            teacher_model = one_name("teacher_model_name_or_path", teacher_model, args.teacher_model_name_or_path)
            if teacher_model is None:
                raise ValueError(
                    "no teacher: pass `teacher_model` (or set `teacher_model_name_or_path`), or switch distillation "
                    "off with `use_kd: false`"
                )
            if isinstance(teacher_model, str):
                with key_named("teacher_model_name_or_path"):
                    teacher_model = resolve_model(teacher_model)
            refuse_shared(model, teacher_model, "teacher")
            check_teacher_settings(args, teacher_model)
            quantized = args.teacher_load_in_4bit or args.teacher_load_in_8bit
            if args.teacher_quantization_samples and not (quantized and isinstance(teacher_model, str)):
                raise ValueError(
                    "teacher_quantization_samples needs a teacher that is given by name and loaded in 4 or 8 bits"
                )
            self._check_vocabularies(model, teacher_model, args, processing_class, teacher_processing_class)
            self.teacher_model = load_teacher(teacher_model, args, args.device)
            check_head(self.teacher_model, "teacher")
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        if self.accelerator.is_main_process:  # others may have no weights yet
            check_head(self.accelerator.unwrap_model(self.model), "student")
        self.limit_tokens(self.model.config.get_text_config().vocab_size)
        if self.shared_vocab_size is not None:
            self.limit_tokens(self.shared_vocab_size)
        self._teacher_head: Head | None = None
        self.quantization_kl: float | None = None
        if args.teacher_quantization_samples and self.teacher_model is not None:
            self.quantization_kl = self._measure_quantization(teacher_model)

    def _check_vocabularies(self, student, teacher, args, tokenizer, teacher_tokenizer) -> None:
        student_config = student.config if not isinstance(student, str) else None
        if student_config is None:
            student_config = AutoConfig.from_pretrained(student, **repository_options(args))
        teacher_config, teacher_tokenizer = load_teacher_config(teacher, args, teacher_tokenizer)
        self.shared_vocab_size = check_vocabularies(student_config, teacher_config, tokenizer, teacher_tokenizer)

    def _measure_quantization(self, teacher_name: Any) -> float:
        args = copy.copy(self.args)
        args.teacher_load_in_4bit = args.teacher_load_in_8bit = False
        reference = load_teacher(teacher_name, args, self.args.device)
        rows = [row for row, _ in zip(self.train_dataset, range(args.teacher_quantization_samples))]
        return quantization_kl(self.teacher_model, reference, (self.data_collator([row]) for row in rows))

    # The loss

    def _loss_and_sums(self, model, inputs, num_items_in_batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, [B, len(SUMS)] sums of every row), inside the student's own forward."""
        labels = inputs["labels"][:, 1:]
        labeled = labels != -100
        hidden = labeled_states(model, inputs, labeled, "student model")
        head = Head(model, model.config.get_text_config().vocab_size)
        hidden = hidden.to(head.weight.device)
        teacher_hidden = None
        if self.teacher_model is not None:
            if self._teacher_head is None:  # frozen: brought to the student's device once
                assert self.shared_vocab_size is not None  # known where there is a teacher
                self._teacher_head = Head(self.teacher_model, self.shared_vocab_size, head.weight.device)
            teacher_hidden = teacher_states(self.teacher_model, inputs, labeled).to(hidden.device)
        targets = labels[labeled].to(hidden.device)
        alpha = self.args.kd_alpha if teacher_hidden is not None else 0.0
        out = chunked_kd_ce(hidden, head, teacher_hidden, self._teacher_head, targets, alpha, self.args.kd_temperature)
        count = labeled.sum() if num_items_in_batch is None else num_items_in_batch
        loss = out.total / torch.as_tensor(count, device=out.total.device).clamp(min=1)
        per_token = [out.ce, out.kd * self.args.kd_temperature**2, out.entropy, out.correct, torch.ones_like(out.ce)]
        row_of_token = labeled.nonzero()[:, 0].to(hidden.device)
        sums = torch.zeros(labels.size(0), len(SUMS), dtype=out.ce.dtype, device=hidden.device)
        sums[:, :-1].index_add_(0, row_of_token, torch.stack([x.to(out.ce.dtype) for x in per_token], dim=1))
        read = inputs["attention_mask"].sum(dim=1) if "attention_mask" in inputs else labels.size(1) + 1
        sums[:, -1] = read
        return loss, sums.detach()

    def _where_not_finite(self) -> str:
        sums = self._sums["train"]
        if sums is None or self.teacher_model is None or not sums[SUMS.index("ce")].isfinite():
            return ""
        if sums[SUMS.index("kd")].isfinite():
            return ""
        return " by the teacher's part alone (another `teacher_dtype`, or no quantization, may help)"

    # What is logged

    def _means(self, mode: str) -> dict[str, float]:
        """Means over all labeled tokens since the last call; the sums begin again."""
        sums = self.take_sums(mode)
        if sums is None:
            return {}
        sums = dict(zip(SUMS, sums.tolist()))
        labeled = max(sums["labeled"], 1.0)
        means = {"loss/ce": sums["ce"] / labeled}
        if self.teacher_model is not None:
            means["loss/kd"] = sums["kd"] / labeled
        means |= {"entropy": sums["entropy"] / labeled, "mean_token_accuracy": sums["correct"] / labeled}
        if mode == "train":
            self.tokens_read += int(sums["read"])
            means["num_tokens"] = self.tokens_read
        return means

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._means("train")
            if self.quantization_kl is not None:
                logs["teacher/quantization_kl"] = self.quantization_kl
        super().log(logs, start_time)

    def ready(self, dataset):
        dataset = super().ready(dataset)
        check_answers_fit(dataset, self.args.max_length)
        return dataset

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """The parent's, with the loss and its parts weighted by tokens over the full set, and the perplexity."""
        self._sums["eval"] = None
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._sums["eval"] is None or self._sums["eval"][SUMS.index("labeled")] == 0:  # TRL may have left out all
            raise ValueError("no token of the evaluation set is labeled, so there is no perplexity")
        means = self._means("eval")
        if means:
            alpha = self.args.kd_alpha if self.teacher_model is not None else 0.0
            means["loss"] = (1 - alpha) * means["loss/ce"] + alpha * means.get("loss/kd", 0.0)
            means["perplexity"] = math.exp(min(means["loss/ce"], 700.0))
            output.metrics.update({f"{metric_key_prefix}_{key}": value for key, value in means.items()})
        return output
