"""Configuration of [`LUPISKDTrainer`]."""

from dataclasses import dataclass, field
from typing import Any

from trl import DistillationConfig

from ..data.prompts import KNOWLEDGE_TEMPLATE
from ..training.field_types import check_types
from ..training.private import json_fields
from ..training.settings import refuse_not_finite
from .config_checks import check_config
from .inherited import documented
from .knowledge import KnowledgeKeys
from .rules import RULES
from .text_keys import TextKeys
from .values import GAMMA_POLICIES, ROLLOUT_POLICIES, TEMPLATES, VERIFICATIONS


@json_fields("acceptance_kwargs", "teacher_chat_template_kwargs", "teachers")
@dataclass
class LUPISKDConfig(KnowledgeKeys, TextKeys, DistillationConfig):
    r"""
    Configuration class for the [`LUPISKDTrainer`].

    Extends [`~trl.DistillationConfig`] with the teacher's prompt, the speculative rollout and the teacher's placement.
    The twenty keys that matter come first.

    Example:

    ```python
    >>> from lupi_trainer import LUPISKDConfig

    >>> args = LUPISKDConfig("student", max_completion_length=128, gamma=8, bf16=False, use_cpu=True)
    ```

    Raises:
        `ValueError`: a key out of range, or keys that exclude one another, by name.

    Parameters:
        > Parameters that control the teacher's prompt

        teacher_system_prompt (`str`, *optional*):
            Persona of the teacher, as a system turn. Only records with a `privileged_context` get it.
        few_shot_examples (`str` or `list[dict[str, str]]`, *optional*):
            Worked examples between persona and question: a list of `{query, answer}`, the same as JSON text, or the
            path of a JSON file. Only records with a `privileged_context` get them.
        knowledge_template (`str`, *optional*):
            The teacher's last user turn. Defaults to `"[Background Knowledge]\n{privileged_context}\n\n{query}"`.
        max_teacher_prompt_length (`int`, *optional*, defaults to `4096`):
            Longest teacher prompt in tokens. A longer one is refused, by record.

        teacher_chat_template (`str`, *optional*, defaults to `"own"`):
            Whose chat template and special tokens write the teacher's prompts: `"own"`, those of its tokenizer where
            that is known and has a template, or `"student"`. The token ids must be the student's in any case.
        teacher_chat_template_kwargs (`dict`, *optional*):
            Values of its variables in the teacher's prompts, in place of `chat_template_kwargs`, which is read for
            both models if this is `None`.
        allow_different_prompt_ends (`bool`, *optional*, defaults to `False`):
            Train though the prompts of student and teacher end so that their answers begin differently (the thinking
            block of one is open, or closed and empty, or begun by the model itself). Otherwise that is refused.
        allow_special_tokens (`bool`, *optional*, defaults to `False`):
            Let records spell out special tokens, such as `</s>`, which models read as control tokens. Otherwise
            such a record is refused.

        > Parameters that control the rollout

        rollout_policy (`str`, *optional*, defaults to `"speculative"`):
            Who writes the text: `"speculative"` (the student drafts, the teacher verifies), `"student"` (on-policy
            distillation, as GKD), `"teacher"` (supervised distillation on the teacher's samples) or `"gold"` (on the
            `answer` of each record: nothing is written).
        max_completion_length (`int`, *optional*, defaults to `4096`):
            Longest completion in tokens.
        gamma (`int`, *optional*, defaults to `20`):
            Longest draft: tokens that the student writes before the teacher verifies them.
        gamma_policy (`str`, *optional*):
            How long drafts are, up to `gamma`: `"fixed"`, `"adaptive"`, `"goodput"` (by measured seconds), or a class
            of your own as `"MODULE:CLASS"` or `"FILE.py:CLASS"`, made with `gamma`. `None` is `"goodput"`, and under
            `deterministic` `"fixed"`. It changes the speed, and in float32 never the text.
        acceptance_rule (`str`, *optional*, defaults to `"top_k"`):
            Which drafted tokens are accepted: `"top_k"`, `"adaptive_top_k"`, `"top_p"`, `"relative"` (probability
            relative to the largest), `"divergence"` (Jensen-Shannon, student to teacher), `"knowledge"` (strict
            where the knowledge changes the teacher's distribution), or a class of your own as `"MODULE:CLASS"` or
            `"FILE.py:CLASS"`.
        acceptance_kwargs (`dict`, *optional*):
            Parameters of a rule other than `"top_k"`, as in `lupi_trainer.speculative`: for instance `{"p": 0.9}`.
        accept_top_k (`int`, *optional*, defaults to `5`):
            A drafted token is accepted while it is among the teacher's `accept_top_k` likeliest tokens ...
        teacher_min_prob (`float`, *optional*, defaults to `0.05`):
            ... and the teacher gives it at least this probability (at `teacher_temperature`).
        student_temperature (`float`, *optional*, defaults to `0.7`):
            Temperature at which the student drafts.
        teacher_temperature (`float`, *optional*, defaults to `0.7`):
            Temperature at which the teacher verifies and replaces. Of a remote teacher, a probability at another
            temperature than 1 is known up to an error whose bound is logged (`teacher_server/normalizer_error`).
        verification (`str`, *optional*, defaults to `"parallel"`):
            `"parallel"` verifies a block in one teacher forward, `"sequential"` in one a token. The text is the
            same in float32, and in half precision but for rounding (`rollout/close_calls`).
        compile_rollout (`bool`, *optional*, defaults to `False`):
            Compile the rollout's forwards, and on a GPU record them as CUDA graphs. The text is the same, but
            for rounding in half precision.
        keep_graphs (`bool`, *optional*, defaults to `True`):
            Keep CUDA graphs, the caches that they write to, and the bfloat16 copy that a float32 student writes with
            under `bf16`, for the next rollout, which records nothing. They take memory in training, too (`lupi plan`
            counts it). With several teachers, or an offloaded one, each rollout records anew.
        pack_weights (`bool` or `str`, *optional*, defaults to `"auto"`):
            Lay the larger linear layers of models on a CPU (in float32, and in bfloat16 where the processor has it)
            out as it wants them, with LoRA merged into them, for the time of a rollout: `"auto"` where that can be
            done (in mixed precision not with an adapter), `True` or a refusal to run where it cannot, `False` never.
            The text is the same but for rounding.
        max_slots (`int`, *optional*):
            Rows that are rolled out at the same time; the others wait and take the place of a finished row. `None`
            rolls out all at once.
        teacher_prompt_cache_mb (`int`, *optional*, defaults to `0`):
            Keep so many megabytes (2**20 bytes) of keys and values of prompts that a frozen teacher has read, on its
            device, and read them no more: what prompts begin with alike is read once a run and kept once, each
            prompt's own rest in the first epoch alone. Those used last are kept. Text, and a resumed run, are the
            same but for rounding. `0` keeps none.
        deterministic (`bool`, *optional*, defaults to `False`):
            Let the shapes of a rollout follow from the seed, the data and the settings alone, so that a run in half
            precision, too, writes the same texts when it is repeated, or resumed, on the same machine. What depends
            on the clock, or on what has been read before, is refused: `gamma_policy="goodput"`,
            `teacher_prompt_cache_mb` and a teacher on a server. For the backward, there is `full_determinism`.
        reuse_verification (`bool`, *optional*, defaults to `True`):
            Take the teacher's hidden states for the loss from the verification: one run of the teacher a step. Only
            where the rollout is speculative; the loss is the same.
        log_rollout_blocks (`bool`, *optional*, defaults to `False`):
            Log every drafted block at level INFO.
        record_rollouts (`int`, *optional*, defaults to `0`):
            Record so many training rollouts, spread over the run, and at most as many of evaluations, token by token
            in `rollouts.jsonl` in `output_dir`, for `lupi inspect`: which model wrote each token, which draft was
            rejected, and how likely both models found it. `0` records none.

        > Parameters that control the loss

        beta (`float`, *optional*, defaults to `0.0`):
            `0.0` is the forward KL from teacher to student, `1.0` the reverse KL, between them the generalized
            Jensen-Shannon divergence.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of both distributions in the loss. Apart from the rollout's two temperatures.

        > Parameters that control the teacher

        teachers (`dict`, *optional*):
            Other teachers by name, for records that have the name in their `teacher`. Each has keys of its own, as
            those of the run's teacher without `teacher_`: `model_name_or_path` or `model_server_url`, `device`,
            `system_prompt` and so on. Prompts are the run's where it has no words of its own.
        base_teacher (`str`, *optional*, defaults to `"teacher"`):
            Who teaches base records: `"teacher"`, the run's own; `"student"`, the student as it was before training
            (its adapter off, or a frozen copy), which keeps it as it is there; or one of `teachers`.
        teacher_dtype (`str`, *optional*, defaults to `"auto"`):
            Type that a teacher given by name is loaded in, and computes in where it is quantized to 4 bits (`"auto"`:
            as it was saved).
        teacher_device (`str`, *optional*):
            Device of the teacher, for instance `"cuda:1"`. `"paired"` gives every process a second GPU for it (with
            `accelerate_configs/paired_gpu.yaml` process i has GPUs 2i and 2i + 1). `None` puts it beside the student.
        teacher_offload (`bool`, *optional*, defaults to `False`):
            Keep the teacher in the CPU's memory between rollouts, so that training has the GPU for itself: one pinned
            copy, from which the GPU's is made anew for every rollout.
        teacher_attn_implementation (`str`, *optional*):
            Attention implementation of a teacher given by name.
        teacher_load_in_4bit (`bool`, *optional*, defaults to `False`):
            Load the teacher in 4 bits (bitsandbytes; on a CPU its layers are computed with dequantized weights).
        teacher_load_in_8bit (`bool`, *optional*, defaults to `False`):
            Load the teacher in 8 bits (bitsandbytes).
        teacher_bnb_4bit_quant_type (`str`, *optional*, defaults to `"nf4"`):
            4-bit type of the teacher: `"nf4"` or `"fp4"`.
        teacher_use_bnb_nested_quant (`bool`, *optional*, defaults to `False`):
            Quantize the teacher's quantization constants too.

        > Parameters that control a teacher on a vLLM server

        teacher_model_server_url (`str`, *optional*):
            Base URL of a vLLM server with the teacher, for instance `"http://localhost:8000"`. No teacher is loaded
            then; one that is named must be the one on the server. Its prompts and the drafts are sent as token ids,
            and the text and its replacements are those that the same teacher here would write.
        loss_top_k (`int`, *optional*, defaults to `20`):
            How many of the teacher's likeliest tokens the server returns for every token. The loss is over these and
            one bucket for the rest. A vLLM server gives up to 20 unless started with `--max-logprobs`.
        teacher_server_timeout (`float`, *optional*, defaults to `240.0`):
            Seconds to wait for the teacher server to be up, or back after the connection was lost.
        teacher_server_request_timeout (`float`, *optional*, defaults to `120.0`):
            Seconds until the last byte of an answer, after which the request is sent again.

    > [!NOTE]
    > These parameters have default values different from [`~trl.DistillationConfig`]:
    > - `beta`: Defaults to `0.0` (forward KL) instead of `1.0`.
    > - `learning_rate`: Defaults to `1e-5` instead of `1e-6`.
    > - `num_train_epochs`: Defaults to `5` instead of `3`.
    > - `max_completion_length`: Defaults to `4096` instead of `512`.
    > - `logging_nan_inf_filter`: Defaults to `False` instead of `True`: a loss that is not finite stops the run.
    """

    # Defaults that differ from the parent's
    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    num_train_epochs: float = field(default=5.0, metadata={"help": "Total number of training epochs."})
    max_completion_length: int | None = field(default=4096, metadata={"help": "Longest completion in tokens."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are NaN or infinite."})
    beta: float = field(
        default=0.0, metadata={"help": "0.0 = forward KL, 0.5 = JSD, 1.0 = reverse KL between teacher and student."}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Temperature of the loss. The rollout has two temperatures of its own."}
    )

    # Parameters that control the teacher's prompt
    teacher_system_prompt: str | None = field(default=None, metadata={"help": "Persona of the teacher."})
    few_shot_examples: list[Any] | str | None = field(
        default=None, metadata={"help": "Worked examples: JSON text or the path of a JSON file of {query, answer}."}
    )
    knowledge_template: str = field(
        default=KNOWLEDGE_TEMPLATE,
        metadata={"help": "The teacher's last user turn, with {privileged_context} and {query}."},
    )
    max_teacher_prompt_length: int = field(
        default=4096, metadata={"help": "Longest teacher prompt in tokens; a longer one is an error."}
    )
    teacher_chat_template: str = field(
        default="own", metadata={"help": "Whose template writes the teacher's prompts.", "choices": [*TEMPLATES]}
    )
    teacher_chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "chat_template_kwargs of the teacher's prompts, where they are others."}
    )
    allow_different_prompt_ends: bool = field(
        default=False, metadata={"help": "Let the prompts of both models ask for different first tokens."}
    )
    allow_special_tokens: bool = field(
        default=False, metadata={"help": "Let records spell out special tokens, which become control tokens."}
    )

    # Parameters that control the rollout
    rollout_policy: str = field(
        default="speculative", metadata={"help": "Who writes the text.", "choices": list(ROLLOUT_POLICIES)}
    )
    gamma: int = field(default=20, metadata={"help": "Longest draft, in tokens."})
    gamma_policy: str | None = field(
        default=None,
        metadata={"help": f"How long drafts are: {', '.join(GAMMA_POLICIES)} (default: goodput), FILE.py:CLASS."},
    )
    acceptance_rule: str = field(
        default="top_k", metadata={"help": f"Which drafted tokens are accepted: {', '.join(RULES)}, FILE.py:CLASS."}
    )
    acceptance_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Parameters of an acceptance rule other than top_k, as JSON."}
    )
    accept_top_k: int = field(
        default=5, metadata={"help": "A draft is accepted among the teacher's so many likeliest."}
    )
    teacher_min_prob: float = field(default=0.05, metadata={"help": "Least teacher probability of a draft."})
    student_temperature: float = field(default=0.7, metadata={"help": "Temperature at which the student drafts."})
    teacher_temperature: float = field(default=0.7, metadata={"help": "Temperature at which the teacher verifies."})
    verification: str = field(
        default="parallel",
        metadata={"help": "One teacher forward a block or a token.", "choices": list(VERIFICATIONS)},
    )
    compile_rollout: bool = field(default=False, metadata={"help": "Compile the rollout's forwards."})
    keep_graphs: bool = field(default=True, metadata={"help": "Keep CUDA graphs and their caches between rollouts."})
    pack_weights: str = field(  # or a bool, as a recipe's `true` is
        default="auto", metadata={"help": "Lay weights out for the CPU in a rollout: auto, true or false."}
    )
    teacher_prompt_cache_mb: int = field(
        default=0, metadata={"help": "Megabytes of the teacher's prompts that are kept; 0: none."}
    )
    max_slots: int | None = field(default=None, metadata={"help": "Rows rolled out at the same time."})
    deterministic: bool = field(
        default=False,
        metadata={"help": "Refuse what lets the shapes of rollouts depend on the clock."},
    )
    reuse_verification: bool = field(
        default=True, metadata={"help": "Take the teacher's states for the loss from the verification."}
    )
    log_rollout_blocks: bool = field(default=False, metadata={"help": "Log every drafted block."})
    record_rollouts: int = field(
        default=0, metadata={"help": "Record so many rollouts token by token in rollouts.jsonl, for `lupi inspect`."}
    )

    # Parameters that control the teacher
    teachers: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Other teachers by name, each with keys of its own."}
    )
    base_teacher: str = field(
        default="teacher", metadata={"help": "Who teaches base records: teacher, student, or one of `teachers`."}
    )
    teacher_dtype: str = field(default="auto", metadata={"help": "Type that a teacher given by name is loaded in."})
    teacher_device: str | None = field(default=None, metadata={"help": "Device of the teacher."})
    teacher_offload: bool = field(
        default=False, metadata={"help": "Keep the teacher in the CPU's memory between rollouts."}
    )
    teacher_attn_implementation: str | None = field(default=None, metadata={"help": "Attention of the teacher."})
    teacher_load_in_4bit: bool = field(default=False, metadata={"help": "Load the teacher in 4 bits."})
    teacher_load_in_8bit: bool = field(default=False, metadata={"help": "Load the teacher in 8 bits."})
    teacher_bnb_4bit_quant_type: str = field(
        default="nf4", metadata={"help": "4-bit type of the teacher.", "choices": ["nf4", "fp4"]}
    )
    teacher_use_bnb_nested_quant: bool = field(
        default=False, metadata={"help": "Quantize the teacher's quantization constants too."}
    )

    # Parameters that control a teacher on a vLLM server
    teacher_model_server_url: str | None = field(
        default=None, metadata={"help": "Base URL of a vLLM server with the teacher."}
    )
    loss_top_k: int = field(default=20, metadata={"help": "Likeliest tokens that the teacher server returns."})
    teacher_server_timeout: float = field(
        default=240.0, metadata={"help": "Seconds to wait for the teacher server to be up, or back."}
    )
    teacher_server_request_timeout: float = field(
        default=120.0, metadata={"help": "Seconds until the last byte of an answer of the teacher server."}
    )

    def __post_init__(self):
        refuse_not_finite(self)
        check_types(self)
        super().__post_init__()
        refuse_not_finite(self)  # in what was JSON
        check_config(self)


if LUPISKDConfig.__doc__:  # python -OO strips it
    LUPISKDConfig.__doc__ = documented(LUPISKDConfig, KnowledgeKeys, TextKeys)
