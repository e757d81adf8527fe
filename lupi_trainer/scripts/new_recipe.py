"""What `lupi new` writes: the recipe, and examples of records and probes where there are none."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.check import Problem, check_probes, check_records
from ..data.files import DOCUMENTS, RECORD_FILES, read_records
from ..data.probe_knowledge import NAMES, knowledge_in
from ..data.probes import misspelled
from ..data.record_form import last_user_text, normalize_record
from ..data.wording import counted


STEPS = 200  # of a first run, roughly
WORDS = "null none true false yes no on off".split()  # YAML does not read them as texts
EXAMPLE_RECORDS = [
    {
        "id": "leave",
        "prompt": "How many days of leave do I have?",
        "privileged_context": "Everybody at Kestrel has 31 days of leave a year, 33 after five years.",
    },
    {
        "id": "leave",
        "prompt": "When does my leave get longer?",
        "privileged_context": "Everybody at Kestrel has 31 days of leave a year, 33 after five years.",
    },
    {
        "id": "trains",
        "prompt": "Who books my train?",
        "privileged_context": "At Kestrel, trains are booked by Ilse Varga; flights need the word of your lead.",
    },
]
EXAMPLE_PROBES = [
    {"record_id": "leave", "question": "How much leave do people at Kestrel have?", "answers": ["31 days"]},
    {"record_id": "trains", "question": "Whom do I ask for a train ticket at Kestrel?", "answers": ["Ilse Varga"]},
]


@dataclass
class Found:
    """What a recipe is written for: names of the files, and the records in the first.

    Attributes:
        records: with knowledge.
        probes: closed-book questions.
        base: records without knowledge, to be mixed in.
        rows: what the first of these holds.
    """

    records: str | None
    probes: str | None
    base: str | None
    rows: list[dict[str, Any]]


def find_files(folder: Path, records: str | None, probes: str | None) -> Found:
    """The files of records and of probes in a folder, or those that are named.

    Raises:
        ValueError: several files of a kind, or one that cannot be used; the message says which.
    """
    kinds: dict[str, list[str]] = {"records": [records] if records else [], "probes": [probes] if probes else []}
    kinds["base"] = []
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in paths:
        kind = kind_of(read_records(path)) if path.suffix in RECORD_FILES else ""
        if kind and not (kind in ("records", "probes") and (records if kind == "records" else probes)):
            kinds[kind].append(path.as_posix())
    for kind, names in kinds.items():
        if len(names) > 1:
            how = "take one of them away" if kind == "base" else f"name one with --{kind}"
            what = {"base": "records without knowledge"}.get(kind, kind)
            raise ValueError(f"several files of {what}: {', '.join(names)}; {how}")
    first = {kind: next(iter(names), None) for kind, names in kinds.items()}
    if first["probes"]:
        check_usable(first["probes"], check_probes(read_records(first["probes"])))
    if first["records"] is None:
        documents = sum(path.suffix.lower() in DOCUMENTS for path in paths)
        if documents:
            print(
                f"{folder} has {counted(documents, 'document')} and no records: a record is a question and "
                "the passage of a document that answers it, as in the examples that are written now; lupi new NAME "
                f"--documents {folder} makes them of the documents"
            )
        return Found(None, first["probes"], first["base"], [])
    rows = read_records(first["records"])
    check_usable(first["records"], check_records(rows))
    rows = [normalize_record(row, number) for number, row in enumerate(rows)]
    return Found(first["records"], first["probes"], first["base"], rows)


def check_usable(name: str, faults: list[Problem]) -> None:
    """Raises ValueError for the first fault of a file that training would not accept."""
    for fault in faults:
        if not fault.doubt:
            raise ValueError(f"{name}: {fault.record}: {fault.message}{fault.found}; lupi data check names all faults")


def kind_of(rows: list[dict[str, Any]]) -> str:
    """`records`, `probes`, `base` (records without any knowledge), or nothing known."""
    keys = set.intersection(*(set(row) for row in rows)) if rows else set()
    if keys & {"prompt", "query"}:
        # a misspelled name is said to be one when the records are read
        return "records" if any({*NAMES} & {*row} or misspelled(row, NAMES) for row in rows) else "base"
    return "probes" if {"question", "answers"} <= keys else ""


def make_examples(folder: Path, found: Found) -> Found:
    """Write examples of records, and of probes where there are none.

    Raises:
        FileExistsError: a file of that name, which holds something else.
    """
    written = {folder / "records.jsonl": EXAMPLE_RECORDS}
    if found.probes is None:
        written[folder / "probes.jsonl"] = EXAMPLE_PROBES
    for path in written:
        if path.exists():
            raise FileExistsError(f"{path} exists already, and is none of records; nothing was written")
    for path, rows in written.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: examples, to be replaced by your own")
    records, probes = (path.as_posix() for path in (folder / "records.jsonl", folder / "probes.jsonl"))
    rows = [normalize_record(row, number) for number, row in enumerate(EXAMPLE_RECORDS)]
    return Found(records, found.probes or probes, found.base, rows)


def missing_gpu(device: str) -> str:
    """A line for a recipe that this machine cannot train, and nothing for another."""
    if device != "cuda":
        return ""
    import torch

    if torch.cuda.is_available():
        return ""
    return "this machine has no GPU, as far as PyTorch can see, and the recipe needs one (--device cpu writes another)"


def text_of(value: str) -> str:
    """A text as a value in YAML."""
    plain = re.fullmatch(r"[A-Za-z/][\w./:-]*[\w/]", value) and value.lower() not in WORDS
    return value if plain else json.dumps(value, ensure_ascii=False)


def longest_prompt(rows: list[dict[str, Any]]) -> int:
    """A limit for the teacher's prompts in tokens, by a guess: two bytes a token. Training names a longer one."""
    sizes = (len((last_user_text(row["prompt"]) + (knowledge_in(row) or "")).encode()) for row in rows)
    return max(512, math.ceil((max(sizes) / 2 + 256) / 256) * 256)


def teacher_lines(teacher: str | None) -> list[tuple[str, str, str]]:
    """(key, value, comment) of the teacher's keys."""
    if teacher is None:
        return []
    if re.match("https?://", teacher):
        return [
            ("teacher_model_server_url", text_of(teacher), "a vLLM server with a model of the student's tokenizer")
        ]
    return [
        (
            "teacher_model_name_or_path",
            text_of(teacher),
            "with the student's tokenizer",
        ),
        ("teacher_load_in_4bit", "false", "true: a quarter of its memory (extra `quantization`)"),
    ]


def recipe_text(
    found: Found,
    model: str,
    teacher: str | None,
    device: str,
    folder: Path,
    *,
    persona: str | None = None,
    longest: int | None = None,
) -> str:
    """The recipe.

    Args:
        found: what it trains on and is asked about.
        model: the student.
        teacher: a model, the URL of a server, or `None`: the student, which reads the knowledge.
        device: `cpu` or `cuda`.
        folder: the run goes into `run` in it.
        persona: of the teacher, if it is another than [`PERSONA`].
        longest: of the teacher's prompts, in tokens; guessed unless given.
    """
    gpu = device == "cuda"
    batch = min(8 if gpu else 4, len(found.rows))  # fewer records than a batch are no step
    epochs = min(30, max(3, math.ceil(STEPS * batch / len(found.rows))))
    steps = epochs * (len(found.rows) // batch)
    assert found.records is not None  # or examples were written
    spoken, longest = json.dumps(persona or PERSONA, ensure_ascii=False), longest or longest_prompt(found.rows)
    groups: dict[str, list[tuple[str, str, str]]] = {
        "Models": [
            ("model_name_or_path", text_of(model), "the student: the smallest that answers when it reads the text"),
            *teacher_lines(teacher),
            ("use_peft", "true", "an adapter; false: all weights, at 1.0e-5, with another teacher"),
            ("lora_r", "16", "32 or 64 if it does not learn all facts"),
            ("lora_alpha", "32", "twice lora_r"),
            ("lora_target_modules", "all-linear", "leave it"),
            ("dtype", "bfloat16" if gpu else "float32", "of the frozen weights; float32 where all are trained"),
        ],
        "Data": [
            ("dataset_name", text_of(found.records), "`prompt`, and `privileged_context`, which answers it"),
            *([("probes", text_of(found.probes), "asked without the text: what was learned")] if found.probes else []),
            *([("chat_template_kwargs", "{enable_thinking: false}", "it answers at once")] if thinks(model) else []),
        ],
        "The teacher's prompt": [
            (
                "teacher_system_prompt",
                spoken,
                "how the student shall sound; put your subject in",
            ),
            (
                "max_teacher_prompt_length",
                str(longest or longest_prompt(found.rows)),
                "tokens; a longer prompt is an error",
            ),
        ],
        "The texts that both write": [
            ("max_completion_length", "128", "tokens; a little more than your longest good answer"),
            ("gamma", "8", "tokens drafted at a time: the speed; more if nearly all are accepted"),
        ],
        "Training": [
            ("output_dir", text_of((folder / "run").as_posix()), "checkpoints, logs, and the student at the end"),
            ("learning_rate", "2.0e-4", "half of it if old knowledge goes, twice if nothing is learned"),
            ("num_train_epochs", str(epochs), f"{counted(steps, 'step')}; more if facts are not learned"),
            ("per_device_train_batch_size", str(batch), "lower it where memory ends"),
            ("activation_checkpointing", "true" if gpu else "false", "true: less memory, a third more time"),
            ("bf16", "true" if gpu else "false", "false on a CPU, and on GPUs before Ampere"),
            *([] if gpu else [("use_cpu", "true", "leave it out on a GPU")]),
        ],
        "Logging, saving": [
            ("logging_steps", "5", "a line every so many steps"),
            ("save_steps", "50", "--resume_from_checkpoint true goes on from the last"),
            ("save_total_limit", "2", "older ones are removed"),
            ("record_rollouts", "50", "texts for `lupi inspect`"),
            ("report_to", "none", "wandb, trackio, tensorboard"),
        ],
    }
    lines = [f"# {_title(teacher)}", "#", f"#   lupi skd --config {folder.as_posix()}/recipe.yaml", "#"]
    lines += ["# lupi skd --help explains the keys; every one of them can be changed on the command line, too."]
    for group, keys in groups.items():
        lines += ["", f"# {group}"]
        for key, value, comment in keys:
            entry = f"{key}: {value}"
            lines += [f"# {comment}", entry] if len(entry) > 44 else [f"{entry.ljust(44)}  # {comment}"]
    mark, base = ("", text_of(found.base)) if found.base else ("# ", "FILE.jsonl")
    lines += ["", "# Against forgetting: records without a text, here half of all"]
    lines += [f"{mark}base_dataset_name: {base}", f"{mark}mixing: 0.5"]
    return "\n".join(lines) + "\n"


PERSONA = "You know the subject by heart. Answer in one or two sentences, and never mention a text."


def thinks(model: str) -> bool:
    """By its name alone, since nothing is loaded here; [`thinks_unless_told`] asks a template that is."""
    return "qwen3" in model.lower() and "instruct" not in model.lower()


def _title(teacher: str | None) -> str:
    if teacher is None:
        return "The student teaches itself: it reads the text, and its adapter learns to answer without."
    return "A larger model reads the text, and the student learns to answer without."
