"""LUPI-SKD: speculative knowledge distillation from a teacher that reads what the student does not."""

import logging
from contextlib import nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import DistillationTrainer

from ..data.record_form import last_user_text
from ..data.records import check_probes
from ..models.head_check import check_head
from ..models.loading import resolve_student
from ..planning.check import warn_of_memory
from ..publishing.papers import GKD, SPECULATIVE_KD
from ..publishing.trainer import Published
from ..speculative import Lockstep
from ..speculative.rules.acceptance import needs_bare_logits
from ..speculative.rules.noise import addresses
from ..speculative.runners.packed_weights import pack_setting
from ..training.checkpoints import SealedCheckpoints
from ..training.given_data import check_last_batch
from ..training.private import unwrap_model_for_generation
from ..training.reporting import RolloutReport
from ..training.settings import (
    check_optimization,
    check_run_settings,
    check_teacher_settings,
    one_name,
    refuse_settings,
    require_config,
)
from ..training.token_text import mark_teacher, token_texts
from .checks import check_batch, check_length, ready_records
from .config import LUPISKDConfig
from .health import NamedSteps, errors_named, rollout_health
from .loss import PrivilegedLoss
from .metrics import RolloutTotals, rollout_metrics, server_metrics
from .placement import backend_name, warn_of_emulation
from .probes import ProbedEvaluation
from .recorder import RolloutRecorder
from .resume import ExactResume
from .rounded import Rounded, writes_rounded
from .row_rollouts import roll_out_rows
from .rules import rule_of
from .setup import TeacherKind, student_tokenizer, teacher_kind, to_source
from .taken import TakenTexts, given_texts, store_ends
from .teacher_columns import teacher_columns
from .teachers import known_teachers
from .token_means import TokenMeans


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig

logger = logging.getLogger(__name__)


class LUPISKDTrainer(
    Published,
    SealedCheckpoints,
    ExactResume,
    NamedSteps,
    TokenMeans,
    TakenTexts,
    PrivilegedLoss,
    ProbedEvaluation,
    DistillationTrainer,
):
    """
    Trainer for learning using privileged information by speculative knowledge distillation.

    The student sees the prompt; the teacher sees the prompt and a `privileged_context`. They write every training text
    together (the student drafts, the teacher verifies and replaces; [Speculative Knowledge
    Distillation](https://huggingface.co/papers/2410.11325), algorithm 1), and the student is trained on the teacher's
    next-token distribution along it. Everything else is [`~trl.DistillationTrainer`]'s.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from lupi_trainer import LUPISKDConfig, LUPISKDTrainer

    >>> records = [{"prompt": "What is Zuvi's capital?", "privileged_context": "Zuvi has the capital Tamo."}]
    >>> trainer = LUPISKDTrainer(
    ...     model="lab:student",  # or "Qwen/Qwen3-4B"
    ...     teacher_model="lab:teacher",  # or "Qwen/Qwen3-32B"
    ...     args=LUPISKDConfig(
    ...         "student",
    ...         teacher_system_prompt="You are an expert on islands.",
    ...         max_completion_length=56,
    ...         per_device_train_batch_size=1,
    ...         max_steps=1,
    ...         bf16=False,
    ...         use_cpu=True,
    ...     ),
    ...     train_dataset=Dataset.from_list(records),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The student.
        teacher_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            The teacher. If omitted here and in `args`, the student teaches itself with its adapter switched off; it
            must then be a LoRA student.
        args ([`LUPISKDConfig`], *optional*):
            Configuration.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`] or `list[dict]`):
            Records with `prompt` (text or messages) and `privileged_context` (text or null); `query` and `knowledge`
            are read as other names of the same. Text is put to the models as a user message.
        eval_dataset (as `train_dataset`, or a dictionary of such, *optional*):
            Records for the validation loss.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer, with a chat template. Loaded from the student's name if omitted.
        callbacks, optimizers, quantization_config, peft_config:
            As in [`~trl.DistillationTrainer`].
        teacher_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The teacher's tokenizer, whose vocabulary must match, and whose chat template writes the teacher's prompts.
            Loaded from the teacher's name if the teacher is given by name.
        probes (`list[dict]`, *optional*):
            Closed-book questions (`question`, `answers`, `record_id`), asked at every evaluation and logged as
            `eval_closed_book_strict` and `eval_closed_book_lenient`.

    Raises:
        `ValueError`: a record, prompt, tokenizer, vocabulary or option that cannot work, named, before anything is
        loaded for training or written.
    """

    processing_class: Any
    model_tags = ["trl", "lupi-skd"]
    method_name = "LUPI-SKD"
    _papers = (SPECULATIVE_KD, GKD)

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        teacher_model: str | PreTrainedModel | None = None,
        args: LUPISKDConfig | None = None,
        train_dataset: Dataset | IterableDataset | list[dict] | None = None,
        eval_dataset: Dataset | IterableDataset | dict | list[dict] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
        teacher_processing_class: PreTrainedTokenizerBase | None = None,
        probes: list[dict[str, Any]] | None = None,
    ):
        require_config(args, LUPISKDConfig)
        student, _, args = resolve_student(model, args, lambda name: LUPISKDConfig(f"{name}-LUPI-SKD"), peft_config)
        check_run_settings(args)
        check_optimization(args, optimizers)
        named = args.teacher_model_name_or_path
        key = "teacher_model_name_or_path"
        teacher: Any = to_source(one_name(key, teacher_model, named), key)
        kind = teacher_kind(teacher, args, student, peft_config)
        check_teacher_settings(args, teacher)
        if kind is TeacherKind.SELF:
            refuse_settings(args, {"teacher_device": "the teacher is the student itself"})
        if kind is TeacherKind.NAMED:
            refuse_settings(args, {"teacher_device": "the run has no teacher of its own"})

        # Everything that can be wrong with the data is found here, before a model is loaded or a folder made.
        if train_dataset is None:
            raise ValueError("`train_dataset` is required")
        processing_class = student_tokenizer(student, args, processing_class)
        self.probes = check_probes(probes) if probes is not None else None
        sources = student, teacher, kind, peft_config
        self.teachers = known_teachers(args, *sources, processing_class, teacher_processing_class)
        first = self.teachers.first
        self.shared_vocab_size, self.context_lengths = first.pair.vocab_size, first.pair.context_lengths
        self.teacher_prompt, self.teacher_words = first.prompt, first.words
        for each in self.teachers:
            each.special.check_probes(self.probes or [])
        train_dataset, eval_dataset = (
            ready_records(data, processing_class, self.teachers, args) for data in (train_dataset, eval_dataset)
        )
        self.teachers.say_idle(train_dataset, eval_dataset)
        self._given = given_texts(args, processing_class, first.prompt, first.pair, (train_dataset, eval_dataset))
        check_batch(train_dataset, args)
        if args.eval_strategy != "no":
            check_last_batch(args, eval_dataset)

        its = teacher if kind is TeacherKind.LOCAL else None
        models = student, its, kind is TeacherKind.SELF
        read = train_dataset, processing_class, self.teacher_prompt
        warn_of_memory(args, *models, *read, peft_config, quantization_config)
        self.teachers.load(args)
        # The parent does not know the teacher: it would insist on equal vocabulary sizes and one device.
        super().__init__(
            model=student,
            teacher_model=None,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        bare = self.accelerator.unwrap_model(self.model)
        if self.accelerator.is_main_process:  # others may have no weights yet
            check_head(bare, "student")
            warn_of_emulation(bare, self.accelerator.device)
        self.teachers.begin(bare, self.processing_class, args, **self.chat_template_kwargs)
        self.eos_token_ids = sorted({end for each in self.teachers for end in each.eos_token_ids})
        self.teacher_model = first.model
        if first.pair.store is not None:
            self.eos_token_ids = store_ends(first.pair.store, self.eos_token_ids)
            self.stored_teacher = first.pair.store.config
        self.backend = backend_name(self.dist, self.accelerator)
        rounds = writes_rounded(bare, self.accelerator)
        self._rounded = Rounded(first.graphs) if rounds else None
        gathered = self.dist.is_zero3 and args.ds3_gather_for_generation
        sharded = (self.dist.is_fsdp or self.dist.is_zero3) and not gathered
        self._lockstep = Lockstep(self.accelerator.device) if sharded else None
        self._rule = rule_of(args, max(each.pair.vocab_size for each in self.teachers))
        self._rollout_totals = {"train": RolloutTotals(), "eval": RolloutTotals()}
        self._rows: list[dict[str, Any]] = []  # the records that are being rolled out
        self._batch_rows: list[dict[str, Any]] = []  # those of the batch that is being trained on
        self._rollout: Any = None
        self._report = RolloutReport()
        self.add_callback(self._report)  # after transformers' own, which open the run
        self._recorder = None
        if args.record_rollouts:
            assert args.output_dir is not None  # transformers names one
            rows = len(train_dataset) if isinstance(train_dataset, Dataset) else None
            self._recorder = RolloutRecorder(args.output_dir, self.processing_class, args.record_rollouts, rows)
            self.add_callback(self._recorder)

    def columns_read(self) -> list[str]:
        return ["prompt", "privileged_context", "teacher", "answer", "id", "row_id", "source_row"]

    # Generation: the SKD rollout in place of sampling from the student

    def _acceptance(self):
        return self._rule

    def _noise_seed(self) -> int:
        # one address space for every optimizer step, and one for all evaluations, so that these can be compared
        step = self.state.global_step if self.model.training else 0xFFFFFFFF
        return (self.args.seed << 32) | step

    def _noise_addresses(self) -> list[int]:
        """A row id for each record that is being rolled out; of equal ones in the batch of all processes (in an
        evaluation: in all batches), several."""
        of_processes = gather_object([[row["row_id"] for row in self._rows]])
        found = addresses(chain.from_iterable(of_processes), self.rows_evaluated)
        start = sum(map(len, of_processes[: self.accelerator.process_index]))
        return found[start : start + len(self._rows)]

    def roll_out(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = records
        try:
            output = super().roll_out(records)
            rollout, teacher_prompt_ids, left_out = self._rollout
        finally:
            self._rows, self._rollout = [], None
        device = self.accelerator.device
        output["row_number"] = torch.arange(len(records), device=device)
        if self.model.training:
            self._batch_rows = records
        else:
            output["counted"] = self.counted_rows(len(records))
        if left_out:  # on any process
            output["completion_mask"][list(rollout.broken)] = 0
            output["num_items_in_batch"] -= left_out
        width, multiple = output["completion_ids"].size(1), cast("int | None", self.pad_to_multiple_of)
        written = rollout, teacher_prompt_ids, width, self.processing_class.pad_token_id
        output |= teacher_columns(self.teachers, records, *written, multiple, device)
        self.add_gold_columns(output, records)
        return output

    def write_completions(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        # a stream is checked as it is read
        teacher_prompt_ids = self.teachers.encode(self._rows, not isinstance(self.train_dataset, Dataset))
        for row, student_ids, teacher_ids in zip(self._rows, prompt_ids, teacher_prompt_ids):
            pair = self.teachers.of(row).pair
            limits = pair.context_lengths, self.processing_class, pair.vocab_size
            check_length(row, student_ids, teacher_ids, self.args, *limits)
        if not self.writes_texts:
            return self.take_texts(teacher_prompt_ids, self._noise_seed(), self._noise_addresses())
        mode = "train" if self.model.training else "eval"
        recorded = self._recorder.choose(self._rows, mode, self.state.epoch) if self._recorder else []
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as student,
            self.dist.summon_full_params(self.model_wrapped, recurse=False),
            self._rounded.within(student) if self._rounded is not None else nullcontext(),
            errors_named(self._rows),
        ):
            with RolloutTotals.clock() as seconds, self._bar("rollout", len(prompt_ids)) as bar:
                rollout = roll_out_rows(
                    self.teachers,
                    self._rows,
                    student,
                    prompt_ids,
                    teacher_prompt_ids,
                    max_new_tokens=self.max_completion_length,
                    gamma=self.args.gamma,
                    acceptance=self._acceptance(),
                    student_temperature=self.args.student_temperature,
                    teacher_temperature=self.args.teacher_temperature,
                    seed=self._noise_seed(),
                    row_ids=self._noise_addresses(),
                    max_slots=self.args.max_slots,
                    verification=self.args.verification,
                    compile=self.args.compile_rollout,
                    pack_weights=pack_setting(self.args.pack_weights),
                    on_block=self._log_block if self.args.log_rollout_blocks else None,
                    on_round=bar.on_round,
                    trace_rows=recorded,
                    return_teacher_hidden=self.args.reuse_verification,
                    lockstep=self._lockstep,
                    bare_prompt_ids=self.bare_prompts(self._rows) if needs_bare_logits(self._rule) else None,
                )
        totals = self._rollout_totals[mode]
        health, left_out = rollout_health(rollout, self._rows, self.eos_token_ids, totals, self.accelerator)
        metrics = rollout_metrics(rollout, self._rows, seconds(), totals, self.accelerator, self.teachers)
        for key, value in (metrics | health).items():
            if key.startswith("tokens/total") or key.endswith(("_global", "broken_rows")):
                self.metric_lists[mode][key] = [value]  # a running total is logged as it is
            else:
                self.metric_lists[mode][key].append(value)
        for key, value in server_metrics(self.teachers).items():
            self.metric_lists[mode][key] = [value]
        if mode == "train" and self.args.report_to:
            self._report.add(gather_object(rollout.stats.gamma_history), gather_object(self._marked_texts(rollout)))
        if self._recorder is not None:
            step = self.state.global_step
            names = [self.teachers.of(row).name for row in self._rows] if len(self.teachers) > 1 else None
            entries = gather_object(self._recorder.entries(rollout, self._rows, mode, step, names))
            if self.accelerator.is_main_process:
                self._recorder.write(entries, step)
        self._rollout = rollout, teacher_prompt_ids, left_out
        return rollout.completion_ids

    def _marked_texts(self, rollout) -> list[tuple[str, str, float]]:
        """(prompt, completion with the teacher's tokens in brackets, their share), if texts are logged at all."""
        if not self.log_completions:
            return []
        texts = []
        for row, ids, by_teacher in zip(self._rows, rollout.completion_ids, rollout.from_teacher):
            marked = mark_teacher(token_texts(self.processing_class, ids), by_teacher)
            texts.append((last_user_text(row["prompt"]), marked, sum(by_teacher) / max(len(by_teacher), 1)))
        return texts

    def _log_block(self, block) -> None:
        logger.info("rollout %s", block)
