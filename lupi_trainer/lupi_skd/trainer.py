"""LUPI-SKD: speculative knowledge distillation from a teacher that reads what the student does not."""

import logging
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset, IterableDataset
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl import DistillationTrainer

from ..data.prompts import TeacherPrompt, check_tokenizer, encode, load_few_shot_examples
from ..data.records import check_probes, last_user_text, prepare_columns
from ..evaluation import closed_book
from ..lab import resolve_model
from ..models.lm_head import Head
from ..models.vocabulary import check_vocabularies
from ..publishing.papers import GKD, SPECULATIVE_KD
from ..publishing.trainer import Published
from ..speculative import AdapterDisabled, Lockstep, skd_rollout
from ..teachers.loaded import load_teacher, load_teacher_tokenizer
from ..teachers.vllm import TeacherServer
from ..training.checkpoints import SealedCheckpoints
from ..training.private import chunked_divergence_loss, pad, unwrap_model_for_generation
from ..training.progress import WorkBar
from ..training.reporting import RolloutReport, open_trackio
from ..training.token_text import mark_teacher, token_texts
from .checks import check_batch, check_dataset_lengths, check_length
from .config import LUPISKDConfig
from .health import NamedSteps, errors_named, rollout_health
from .metrics import RolloutTotals, rollout_metrics
from .placement import backend_name, lent
from .recorder import RolloutRecorder
from .resume import ExactResume
from .rules import make_gamma_policy, rule_of
from .served import connect_teacher, served_divergence_loss
from .states import completion_states


logger = logging.getLogger(__name__)


class LUPISKDTrainer(Published, SealedCheckpoints, ExactResume, NamedSteps, DistillationTrainer):
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
    ...     model="Qwen/Qwen3-4B",
    ...     teacher_model="Qwen/Qwen3-32B",
    ...     args=LUPISKDConfig("student", teacher_system_prompt="You are an expert on islands."),
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
            The tokenizer, with a chat template and a pad token. Loaded from the student's name if omitted.
        callbacks, optimizers, quantization_config, peft_config:
            As in [`~trl.DistillationTrainer`].
        teacher_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The teacher's tokenizer, only to check that the vocabularies match. Loaded from the teacher's name if the
            teacher is given by name.
        probes (`list[dict]`, *optional*):
            Closed-book questions (`question`, `answers`, `record_id`), asked at every evaluation and logged as
            `eval_closed_book_strict` and `eval_closed_book_lenient`.

    Raises:
        `ValueError`: a record, prompt, tokenizer, vocabulary or option that cannot work, named, before anything is
        loaded for training or written.
    """

    model_tags = ["trl", "lupi-skd"]
    method_name = "LUPI-SKD"
    _papers = (SPECULATIVE_KD, GKD)

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",  # noqa: F821
        teacher_model: str | PreTrainedModel | None = None,
        args: LUPISKDConfig | None = None,
        train_dataset: Dataset | IterableDataset | list[dict] | None = None,
        eval_dataset: Dataset | IterableDataset | dict | list[dict] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: "BitsAndBytesConfig | None" = None,  # noqa: F821
        peft_config: "PeftConfig | None" = None,  # noqa: F821
        teacher_processing_class: PreTrainedTokenizerBase | None = None,
        probes: list[dict[str, Any]] | None = None,
    ):
        if isinstance(model, str):
            model = resolve_model(model)
        name = model if isinstance(model, str) else model.config.name_or_path or "student"
        if args is None:
            args = LUPISKDConfig(f"{name.split('/')[-1]}-LUPI-SKD")
        teacher_model = teacher_model if teacher_model is not None else args.teacher_model_name_or_path
        served = args.teacher_model_server_url is not None
        if (
            teacher_model is None
            and not served
            and peft_config is None
            and (isinstance(model, str) or not is_peft_model(model))
        ):
            raise ValueError(
                "no teacher: pass `teacher_model`, set `teacher_model_name_or_path` or `teacher_model_server_url`, or "
                "give the student a LoRA adapter (`peft_config`, `use_peft`), so that it can be its own teacher "
                "with the adapter switched off"
            )

        # Everything that can be wrong with the data is found here, before a model is loaded or a folder made.
        if train_dataset is None:
            raise ValueError("`train_dataset` is required")
        origin = {"trust_remote_code": args.trust_remote_code}
        if isinstance(model, str):
            origin["revision"] = (args.model_init_kwargs or {}).get("revision", "main")
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(name, **origin)
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            raise TypeError(f"`processing_class` must be a text tokenizer, got {type(processing_class).__name__}")
        check_tokenizer(processing_class)
        self.teacher_prompt = TeacherPrompt(
            args.teacher_system_prompt, load_few_shot_examples(args.few_shot_examples), args.knowledge_template
        )
        self.probes = check_probes(probes) if probes is not None else None
        train_dataset, eval_dataset = prepare_columns(train_dataset), prepare_columns(eval_dataset)
        student_config = model.config if not isinstance(model, str) else None
        if student_config is None:
            student_config = AutoConfig.from_pretrained(model, **origin)
        if isinstance(teacher_model, str):
            teacher_config = AutoConfig.from_pretrained(
                resolve_model(teacher_model),
                revision=args.teacher_model_revision,
                trust_remote_code=args.trust_remote_code,
            )
            if teacher_processing_class is None:
                teacher_processing_class = load_teacher_tokenizer(teacher_model, args)
        else:
            teacher_config = student_config if teacher_model is None else teacher_model.config
        vocab_size = check_vocabularies(student_config, teacher_config, processing_class, teacher_processing_class)
        if served:  # what a teacher without a name has beyond the tokenizer is not known
            shared = vocab_size if teacher_model is not None else len(processing_class)
            teacher_model = connect_teacher(teacher_model, args, processing_class, shared)
            vocab_size, teacher_config = teacher_model.vocab_size, teacher_model.config
        self._context_lengths = tuple(
            getattr(c.get_text_config(), "max_position_embeddings", None) for c in (student_config, teacher_config)
        )
        for dataset in (train_dataset, *(eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset])):
            check_dataset_lengths(dataset, processing_class, self.teacher_prompt, args, self._context_lengths)

        check_batch(train_dataset, args)
        if teacher_model is not None and not served:
            teacher_model = load_teacher(teacher_model, args, args.device)
            self._teacher_device = next(teacher_model.parameters()).device
            if args.teacher_offload:
                teacher_model.to("cpu")
        elif args.teacher_offload:
            raise ValueError("teacher_offload: a self-taught student has no other model to put away")
        # The parent is not told of the teacher: it would insist on equal vocabulary sizes and one device.
        super().__init__(
            model=model,
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
        self.shared_vocab_size = vocab_size
        if teacher_model is None:
            if not isinstance(self.model.get_output_embeddings(), torch.nn.Linear):
                raise ValueError(
                    "a student that teaches itself must keep its lm_head as it is: take it out of `modules_to_save`"
                )
            teacher_model = AdapterDisabled(self.accelerator.unwrap_model(self.model))
        self.teacher_model = teacher_model
        self.backend = backend_name(self.dist, self.accelerator)
        gathered = self.dist.is_zero3 and args.ds3_gather_for_generation
        sharded = (self.dist.is_fsdp or self.dist.is_zero3) and not gathered
        self._lockstep = Lockstep(self.accelerator.device) if sharded else None
        self._teacher_head: Head | None = None
        self._rule = rule_of(args, vocab_size)
        self._gamma_policy = make_gamma_policy(args.gamma_policy, args.gamma)
        self._rollout_totals = {"train": RolloutTotals(), "eval": RolloutTotals()}
        self._rows: list[dict[str, Any]] = []  # the records that are being rolled out
        self._batch_rows: list[dict[str, Any]] = []  # those of the batch that is being trained on
        self._rollout = None
        self._report = RolloutReport()
        self.add_callback(self._report)  # after transformers' own, which open the run
        self._recorder = None
        if args.record_rollouts:
            rows = len(train_dataset) if isinstance(train_dataset, Dataset) else None
            self._recorder = RolloutRecorder(args.output_dir, self.processing_class, args.record_rollouts, rows)
            self.add_callback(self._recorder)

    def columns_read(self) -> list[str]:
        return ["prompt", "privileged_context", "id", "row_id", "source_row"]

    @property
    def _is_self_taught(self) -> bool:
        return isinstance(self.teacher_model, AdapterDisabled)

    # Generation: the SKD rollout in place of sampling from the student

    def _acceptance(self):
        return self._rule

    def _noise_seed(self) -> int:
        # one address space for every optimizer step, and one for all evaluations, so that these can be compared
        step = self.state.global_step if self.model.training else 0xFFFFFFFF
        return (self.args.seed << 32) | step

    def roll_out(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = inputs
        try:
            output = super().roll_out(inputs)
            rollout, teacher_prompt_ids, left_out = self._rollout
        finally:
            self._rows, self._rollout = [], None
        device = self.accelerator.device
        output["row_number"] = torch.arange(len(inputs), device=device)
        if self.model.training:
            self._batch_rows = inputs
        if left_out:  # on any process
            output["completion_mask"][list(rollout.broken)] = 0
            output["num_items_in_batch"] -= left_out
        prompts = [torch.tensor(ids) for ids in teacher_prompt_ids]
        output["teacher_prompt_ids"] = pad(prompts, self.processing_class.pad_token_id, "left").to(device)
        output["teacher_prompt_mask"] = pad([torch.ones_like(p) for p in prompts], 0, "left").to(device)
        if rollout.teacher_hidden is not None:
            width = output["completion_ids"].size(1)
            states = pad([h.to(device) for h in rollout.teacher_hidden], 0, "right")
            output["teacher_hidden"] = torch.nn.functional.pad(states, (0, 0, 0, width - states.size(1)))
        if rollout.teacher_top is not None:
            top = pad([t.to(device) for t in rollout.teacher_top], 0, "right")
            missing = output["completion_ids"].size(1) - top.size(1)
            output["teacher_top"] = torch.nn.functional.pad(top, (0, 0, 0, missing))
        return output

    def write_completions(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        messages = [self.teacher_prompt.messages(r["prompt"], r["privileged_context"]) for r in self._rows]
        teacher_prompt_ids = encode(self.processing_class, messages, **self.chat_template_kwargs)
        for row, student_ids, teacher_ids in zip(self._rows, prompt_ids, teacher_prompt_ids):
            check_length(row, student_ids, teacher_ids, self.args, self._context_lengths)
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
            self._teacher_at_hand(),
            errors_named(self._rows),
        ):
            with RolloutTotals.clock() as seconds, self._bar("rollout", len(prompt_ids)) as bar:
                rollout = skd_rollout(
                    student,
                    AdapterDisabled(student) if self._is_self_taught else self.teacher_model,
                    prompt_ids,
                    teacher_prompt_ids,
                    max_new_tokens=self.max_completion_length,
                    gamma=self.args.gamma,
                    gamma_policy=self._gamma_policy,
                    acceptance=self._acceptance(),
                    student_temperature=self.args.student_temperature,
                    teacher_temperature=self.args.teacher_temperature,
                    eos_token_id=self.eos_token_ids,
                    seed=self._noise_seed(),
                    row_ids=[row["row_id"] for row in self._rows] if "row_id" in self._rows[0] else None,
                    max_slots=self.args.max_slots,
                    verification=self.args.verification,
                    compile=self.args.compile_rollout,
                    on_block=self._log_block if self.args.log_rollout_blocks else None,
                    on_round=bar.on_round,
                    trace_rows=recorded,
                    vocab_size=self.shared_vocab_size,
                    return_teacher_hidden=self.args.reuse_verification,
                    lockstep=self._lockstep,
                )
        totals = self._rollout_totals[mode]
        health, left_out = rollout_health(rollout, self._rows, self.eos_token_ids, totals, self.accelerator)
        for key, value in (rollout_metrics(rollout, seconds(), totals, self.accelerator) | health).items():
            if key.startswith("tokens/total") or key.endswith(("_global", "broken_rows")):
                self.metric_lists[mode][key] = [value]  # a running total is logged as it stands
            else:
                self.metric_lists[mode][key].append(value)
        if isinstance(self.teacher_model, TeacherServer):
            for key, value in vars(self.teacher_model.stats).items():
                self.metric_lists[mode][f"teacher_server/{key}"] = [value]
        if mode == "train" and self.args.report_to:
            self._report.add(gather_object(rollout.stats.gamma_history), gather_object(self._marked_texts(rollout)))
        if self._recorder is not None:
            step = self.state.global_step
            entries = gather_object(self._recorder.entries(rollout, self._rows, mode, step))
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

    def _bar(self, what: str, total: int) -> WorkBar:
        return WorkBar(what, total, enabled=self.accelerator.is_main_process and not self.args.disable_tqdm)

    def _log_block(self, block) -> None:
        logger.info("rollout %s", block)

    # Loss: the teacher's half reads the teacher's own prompt

    def _teacher_at_hand(self):
        if not self.args.teacher_offload:
            return nullcontext()
        return lent(self.teacher_model, self._teacher_device)

    def _teacher_states(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """[B, C, H_teacher] hidden states of the teacher over its own prompt, on the teacher's device."""
        if self._is_self_taught:
            model = self.teacher_model.peft_model
            context = model.disable_adapter()
        else:
            model, context = self.teacher_model, torch.no_grad()
        device = next(model.parameters()).device if self._is_self_taught else self._teacher_device
        names = ("teacher_prompt_ids", "teacher_prompt_mask", "completion_ids", "completion_mask")
        was_training = model.training
        model.eval()
        try:
            # in the teacher's own dtype, as in the rollout: the student's mixed precision is not the teacher's
            with torch.no_grad(), context, self._teacher_at_hand(), torch.autocast(device.type, enabled=False):
                states = completion_states(model, *(inputs[name].to(device) for name in names))
                # a row that is left out may be NaN, and so would 0 times it
                return states.masked_fill(inputs["completion_mask"].to(device)[..., None] == 0, 0)
        finally:
            model.train(was_training)

    def compute_loss(self, *args, **kwargs):
        # the parent's takes the place of the student's own forward, around which accelerate puts mixed precision
        with self.accelerator.autocast():
            return super().compute_loss(*args, **kwargs)

    def distillation_loss(self, unwrapped_student, inputs, num_items_in_batch):
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        student_states = completion_states(unwrapped_student, *(inputs[name] for name in names))
        student = Head(unwrapped_student, self.shared_vocab_size)
        if "teacher_top" in inputs:
            device = student.weight.device
            rest = (inputs[name].to(device) for name in ("teacher_top", "completion_mask"))
            return served_divergence_loss(student_states.to(device), student, *rest, self.beta, num_items_in_batch)
        if self._is_self_taught:
            teacher = student
        else:
            if self._teacher_head is None:  # frozen: brought to the student's device once
                self._teacher_head = Head(self.teacher_model, self.shared_vocab_size, student.weight.device)
            teacher = self._teacher_head
        teacher_states = inputs.get("teacher_hidden")
        if teacher_states is None:
            teacher_states = self._teacher_states(inputs)
        device = student.weight.device
        loss, entropy_sum, num_valid = chunked_divergence_loss(
            student_states.to(device),
            teacher_states.to(device),
            student.weight,
            teacher.weight.detach(),
            inputs["completion_mask"].to(device),
            self.beta,
            num_items_in_batch=num_items_in_batch,
            student_lm_head_bias=student.bias,
            teacher_lm_head_bias=teacher.bias,
            student_logit_scale=student.scale,
            teacher_logit_scale=teacher.scale,
            student_final_logit_softcapping=student.softcap,
            teacher_final_logit_softcapping=teacher.softcap,
            temperature=self.temperature,
        )
        return loss, entropy_sum.detach(), num_valid

    # Evaluation: closed-book questions beside the validation loss

    def evaluate(self, eval_dataset=None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"):
        open_trackio(self)
        metrics = super().evaluate(
            prepare_columns(eval_dataset) if isinstance(eval_dataset, list) else eval_dataset,
            ignore_keys,
            metric_key_prefix,
        )
        # a dictionary of datasets comes back here once for each of them, under a longer prefix
        if self.probes is not None and metric_key_prefix == "eval":
            marks = self.ask_probes()
            self.log(marks)
            metrics.update(marks)
        return metrics

    def ask_probes(self) -> dict[str, float]:
        """Ask the student every probe closed-book, shared out over the processes.

        Returns:
            `eval_closed_book_strict` and `eval_closed_book_lenient`, fractions of 1.
        """
        processes = self.accelerator.num_processes
        mine = self.probes[self.accelerator.process_index :: processes]
        # as many on every process: sharded weights are gathered by all
        asked = mine + self.probes[:1] * (-(-len(self.probes) // processes) - len(mine))
        with (
            unwrap_model_for_generation(self.model_wrapped, self.accelerator) as student,
            self._bar("closed-book", len(asked)) as bar,
        ):
            answers = closed_book(
                student,
                self.processing_class,
                asked,
                max_new_tokens=min(self.max_completion_length, 256),
                chat_template_kwargs=self.chat_template_kwargs,
                on_batch=bar.update,
            ).answers
        answers = gather_object(answers[: len(mine)])
        return {
            f"eval_closed_book_{mark}": sum(a[mark] for a in answers) / len(answers) for mark in ("strict", "lenient")
        }
