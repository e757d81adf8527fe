"""What `lupi skd --help` says of its keys: the twenty that matter, by group; `--help all` has the others, too.

Nothing heavy is imported here; the tests hold names and defaults to those of the configurations.
"""

import textwrap
from dataclasses import dataclass

from .dry_run.key_types import UNKNOWN, key_types


@dataclass(frozen=True)
class Key:
    """A key of a recipe: its name, its default as text (empty: it must be set), and when to change it."""

    name: str
    default: str
    text: str


_STUDENT = Key("model_name_or_path", "", "the student: a name, a folder, or lab:NAME")
_PROBES = Key("probes", "none", "closed-book questions with `answers`, asked at every evaluation")
_RECORDS = Key("dataset_name", "", "`prompt` and `privileged_context`: .json, .jsonl, lab:NAME, or a Hub name")
_ANSWERS = Key("dataset_name", "", "records with `prompt` and an answer: .json, .jsonl or lab:NAME")
_COLUMN = Key("completion_column", "answer", "column of the records that holds the text to learn")
_BASE = Key("base_dataset_name", "none", "records without knowledge, mixed in lest what was known is forgotten")
_MIXING = Key("mixing", "none", "share of the records with knowledge, with base_dataset_name: 0.5 to begin with")
_LENGTH = Key("max_length", "1024", "tokens of question and answer")


def _lora(default: str, rank: str) -> tuple[Key, ...]:
    return (
        Key("use_peft", default, "train a LoRA adapter, not all weights: much less memory"),
        Key("lora_r", rank, "rank of the adapter: more holds more facts"),
    )


def _training(rate: str, epochs: str, batch: str, accumulation: str) -> tuple[Key, ...]:
    return (
        Key("output_dir", "none", "folder of the run, checkpoints and the student"),
        Key("learning_rate", rate, "an adapter takes ten times that of all weights"),
        Key("num_train_epochs", epochs, "how often every record is trained on"),
        Key("per_device_train_batch_size", batch, "lower it where memory ends"),
        Key("gradient_accumulation_steps", accumulation, "forwards a step: raise it as the batch size falls"),
        Key("bf16", "none", "none: on, unless fp16 is set; false trains in float32"),
        Key("use_cpu", "false", "train on the CPU; with bf16 false where it has no bfloat16"),
    )


_SAVING = (
    Key("eval_strategy", "no", "no, steps or epoch: when losses and probes are measured"),
    Key("resume_from_checkpoint", "none", "true: go on from the last complete checkpoint in output_dir"),
    Key("report_to", "none", "wandb, trackio, tensorboard, none"),
)
_SAVE = Key("save_steps", "500", "a checkpoint every so many steps")

Groups = dict[str, tuple[Key, ...]]
KEYS: dict[str, Groups] = {
    "skd": {
        "Models": (
            _STUDENT,
            Key("teacher_model_name_or_path", "none", "none: a student with use_peft is its own teacher"),
            _lora("false", "16")[0],
        ),
        "Data": (_RECORDS, _BASE, _MIXING, _PROBES),
        "The teacher's prompt": (
            Key("teacher_system_prompt", "none", "persona of the teacher, which the student is to sound like"),
            Key("max_teacher_prompt_length", "4096", "tokens; a longer prompt is an error that names its record"),
        ),
        "The texts that both write": (
            Key("max_completion_length", "4096", "tokens; set it a little above the answers that you want"),
            Key("gamma", "20", "tokens that the student drafts at a time: the speed"),
            Key("accept_top_k", "5", "a drafted token stands among so many of the teacher's likeliest; 1 is strict"),
        ),
        "Training": (*_training("1e-05", "5.0", "8", "1")[:4], *_training("1e-05", "5.0", "8", "1")[6:]),
        "Evaluation, saving, logging": _SAVING,
    },
    "kd": {
        "Models": (
            _STUDENT,
            Key("teacher_model_name_or_path", "none", "the larger model; --teacher_model for short"),
            Key("teacher_load_in_4bit", "false", "the teacher in 4 bits, a quarter of its memory"),
            *_lora("true", "8"),
        ),
        "Data": (
            Key("dataset_name", "", "questions with contexts, in SQuAD's form: a file, lab:NAME, or a Hub name"),
            Key("eval_dataset_name", "none", "questions for the perplexity, before and after"),
            _LENGTH,
            Key("max_samples", "none", "train on so many records"),
        ),
        "The loss": (
            Key("kd_alpha", "0.1", "weight of the teacher; the gold answers have the rest"),
            Key("kd_temperature", "2.0", "softens both distributions"),
        ),
        "Training": _training("0.0002", "1.0", "1", "32")[:6],
        "Evaluation, saving, logging": _SAVING,
    },
    "wmtp": {
        "The algorithm": (
            Key("algo", "", "mtp-baseline, critic-wmtp or rho1-wmtp"),
            Key("horizon", "4", "heads, the model's own among them"),
            Key("head_type", "residual", "linear, residual or transformer"),
            Key("freeze_trunk", "false", "train the heads alone, first"),
            Key("reference_model_name_or_path", "none", "a better model, for rho1-wmtp"),
        ),
        "Models": (_STUDENT, _lora("false", "16")[0]),
        "Data": (
            _ANSWERS,
            _COLUMN,
            _LENGTH,
            Key("eval_dataset_name", "none", "records for the heads' figures"),
        ),
        "Training": _training("2e-05", "3.0", "8", "1")[:6],
        "Evaluation, saving, logging": _SAVING,
    },
    "sft": {
        "Models": (_STUDENT, *_lora("false", "16")),
        "Data": (
            _ANSWERS,
            _COLUMN,
            _LENGTH,
            _BASE,
            _MIXING,
            Key("eval_dataset_name", "none", "records for the validation loss"),
        ),
        "Training": _training("2e-05", "3.0", "8", "1"),
        "Evaluation, saving, logging": (_SAVING[0], _SAVE, *_SAVING[1:]),
    },
}


def keys(command: str) -> str:
    """The keys that matter, by group."""
    lines = []
    for group, members in KEYS[command].items():
        lines += ["", f"{group}:"]
        for key in members:
            lines.append(_entry(key.name, key.default or "required", key.text))
    return "\n".join(lines[1:])


def all_keys(command: str) -> str:
    """Every key, those that matter first, the others by name, as the configurations explain them in their source."""
    known = {key.name for members in KEYS[command].values() for key in members}
    lines = [keys(command), "", "All others:"]
    for name, key in sorted(key_types(command).items()):
        if name not in known:
            choices = f"({', '.join(map(str, key.choices))})" if key.choices else ""
            default = "computed" if key.default is UNKNOWN else as_text(key.default)
            lines.append(_entry(name, default, " ".join([*key.help.split(), choices]).strip()))
    return "\n".join(lines)


def as_text(default: object) -> str:
    """A default as a recipe would have it."""
    if isinstance(default, bool) or default is None:
        return str(default).lower()
    return str(getattr(default, "value", default))


def _entry(name: str, default: str, text: str) -> str:
    head = f"  {name} ({default})"
    if len(head) < 40 and len(text) < 79:
        return f"{head.ljust(40)} {text}"
    return f"{head}\n{textwrap.indent(textwrap.fill(text, 112), ' ' * 6)}"
