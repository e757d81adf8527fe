"""What files alone say against a run: its keys, data, models, folder, packages. torch is not imported."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data.files import find_data, names_records, read_records
from ...data.probes import RecordError, check_probe, record_name
from ...data.record_form import normalize_record
from ...data.teacher_names import RUN, check_teacher, named, parsed
from ...lab import LAB_PREFIX, find_lab_records, resolve_model
from ...lab.folders import ADAPTER_CONFIG, folders_with, no_folder
from ...lupi_skd.unread import refused_settings
from ...lupi_skd.values import value_faults
from ...training import reporters
from ...training.manifest import MANIFEST, flaw
from ...training.run_lock import taken
from .report import Report
from .settings import Settings


DATA = ("dataset_name", "base_dataset_name", "eval_dataset_name")
# model -> the key of its revision
TEACHERS = ("teacher_model_name_or_path", "teacher_model_server_url", "teacher_store")
REVISIONS = {
    "model_name_or_path": "model_revision",
    "teacher_model_name_or_path": "teacher_model_revision",
    "reference_model_name_or_path": "",
}
FORMS = {
    "skd": "a JSON or JSONL file, lab:NAME, or a dataset name",
    "kd": "a JSON or JSONL file, lab:NAME, or a dataset name",
    "sft": "a JSON or JSONL file, lab:NAME, or a dataset name",
    "wmtp": "a JSON or JSONL file, or lab:NAME",
}
# key -> (values that need a package, its module, its name for pip); `True` of a switch
PACKAGES: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "load_in_4bit": ((True,), "bitsandbytes", "bitsandbytes"),
    "load_in_8bit": ((True,), "bitsandbytes", "bitsandbytes"),
    "teacher_load_in_4bit": ((True,), "bitsandbytes", "bitsandbytes"),
    "teacher_load_in_8bit": ((True,), "bitsandbytes", "bitsandbytes"),
    "use_liger_kernel": ((True,), "liger_kernel", "liger-kernel"),
    "deepspeed": ((), "deepspeed", "deepspeed"),
}
OPTIMIZERS = {
    "bnb": "bitsandbytes",
    "adamw_8bit": "bitsandbytes",
    "mix_8bit": "bitsandbytes",
    "lion_8bit": "bitsandbytes",
    "paged": "bitsandbytes",
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "torch_4bit": "torchao",
    "torch_8bit": "torchao",
}


def _data(settings: Settings) -> Iterator[str]:
    for key in DATA:
        name = settings.get(key)
        if name is None:
            continue
        try:
            if name.startswith(LAB_PREFIX):
                find_lab_records(name)
            elif names_records(name) and not find_data(name).is_file():
                yield f"{key}: no such data file: {name}"
        except ValueError as error:
            yield f"{key}: {error}"
    if settings.get("probes") is not None:
        yield from missing_probes("probes", settings.get("probes"))
    store = settings.get("teacher_store")
    if store is not None and not Path(store).is_dir():
        yield f"teacher_store: no such folder: {store}; `lupi teach --config RECIPE --store {store}` writes it"
    examples = settings.get("few_shot_examples")
    if isinstance(examples, str) and not examples.lstrip().startswith("[") and not find_data(examples).is_file():
        yield f"few_shot_examples: no such data file: {examples}"


def missing_probes(key: str, name: str) -> Iterator[str]:
    """Why there are no probes where a key says, if that is so."""
    try:
        if name.startswith(LAB_PREFIX):
            find_lab_records(name)
        else:
            read_records(name)
    except (ValueError, OSError) as error:
        yield f"{key}: {error}"


def faulty_records(key: str, name: str, settings: Settings) -> list[str]:
    """What is wrong with the records of a file that can be read, as training reads them."""
    if name.startswith(LAB_PREFIX) or not names_records(name):
        return []
    try:
        records = read_records(name)
    except FileNotFoundError:  # said already
        return []
    except (ValueError, OSError) as error:
        return [f"{key}: {error}"]
    report, faults = Report(), []
    own = (*TEACHERS, "use_peft")
    arguments = settings.as_arguments()
    teachers = [RUN] * any(map(settings.get, own)) + named(arguments)
    for number, record in enumerate(records):
        try:
            row = normalize_record(record, number, needs_context=key != "base_dataset_name")
            check_teacher(row, arguments.base_teacher, teachers, number)
        except RecordError as error:
            faults.append((record_name(record, number), str(error)))
    report.refuse_records(name, faults)
    if not records:
        report.refuse(f"{name}: the dataset is empty")
    return report.faults


def faulty_probes(name: str) -> list[str]:
    """What is wrong with the probes of a file that can be read: each fault once, with those that have it."""
    if name.startswith(LAB_PREFIX):
        return []
    try:
        probes = read_records(name)
    except (ValueError, OSError):  # see `missing_probes`
        return []
    report, faults = Report(), []
    for number, probe in enumerate(probes):
        try:
            check_probe(probe, number)
        except RecordError as error:
            faults.append((f"probe of {record_name(probe, number)}", error.fault + error.found))
    report.refuse_records(name, faults)
    if not probes:
        report.refuse(f"{name}: there are no probe questions")
    return report.faults


def models(settings: Settings) -> Iterator[str]:
    """What is wrong with the models that a run names, as far as their names and folders tell."""
    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes")
    remote = settings.get("teacher_model_server_url") or settings.get("teacher_store")
    keys = [key for key in REVISIONS if not (remote and key.startswith("teacher"))]
    named = [(key, settings.get(key), settings.get(REVISIONS[key]), _takes_pickles(settings, key)) for key in keys]
    for key, name, revision, takes_pickles in (*named, *_other_teachers(settings)):
        if name is None:
            continue
        try:
            path = Path(resolve_model(name)).expanduser()
        except ValueError as error:
            yield f"{key}: {error}"
            continue
        if path.is_dir():
            if (path / ADAPTER_CONFIG).is_file():
                yield (
                    f"{key}: {name} is an adapter, and a model is wanted: fold the adapter into its base model first "
                    f"(`lupi merge --model BASE --adapter {name} --out FOLDER`), and name that"
                )
            elif not any(path.glob("*.safetensors")) and not takes_pickles:
                yield f"{key}: {name} has no weights as safetensors"
        elif offline and not _is_cached(name, revision):
            yield f"{key}: {name} is no folder here, HF_HUB_OFFLINE is set, and its cache has no such model"


def _other_teachers(settings: Settings) -> Iterator[tuple[str, str, str | None, bool]]:
    """Of each of `teachers` that is loaded: its key, name and revision, and whether it may be a pickle."""
    teachers = parsed(settings.get("teachers"))
    for name, own in teachers.items() if isinstance(teachers, dict) else ():
        path = own.get("model_name_or_path") if isinstance(own, dict) else None
        if isinstance(path, str) and own.get("model_server_url") is None:
            yield f"teachers: {name}", path, own.get("model_revision"), _asks_for_pickles(own.get("model_init_kwargs"))


def _takes_pickles(settings: Settings, key: str) -> bool:
    """Whether the loading options of the model that a key names ask for weights of PyTorch's own format."""
    return _asks_for_pickles(settings.get(key.replace("model_name_or_path", "model_init_kwargs")))


def _asks_for_pickles(options: Any) -> bool:
    try:
        options = json.loads(options) if isinstance(options, str) else options
    except (ValueError, RecursionError):  # which is said where it is read
        return False
    return isinstance(options, dict) and options.get("use_safetensors") is False


def _template(settings: Settings) -> Iterator[str]:
    """What is wrong with the chat template that a run takes over, of a file or of another model."""
    name = settings.get("chat_template_path")
    if name is None or Path(name).is_file():
        return
    if name.endswith((".jinja", ".j2")):
        yield f"chat_template_path: no such file: {name}"
        return
    try:
        resolve_model(name, needs_model=False)
    except ValueError as error:
        yield f"chat_template_path: {error}"


def _is_cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except HFValidationError:  # it can be no name of the Hub's either
        return False


def holds_student(folder: Path) -> bool:
    """Whether a run has ended in a folder: it leaves its model and its log there; one that was cut off, neither."""
    return (folder / "trainer_state.json").is_file() or any(folder.glob("*.safetensors"))


def _resumes(settings: Settings) -> bool:
    resume = os.environ.get("RESUME_CHECKPOINT") or settings.get("resume_from_checkpoint")
    return bool(resume) and str(resume).lower() != "false"


def _folder(settings: Settings) -> Iterator[str]:
    output = Path(settings.get("output_dir") or "trainer_output").expanduser()
    above = next(path for path in (output, *output.absolute().parents) if path.exists())
    if output.exists() and not output.is_dir():
        yield f"output_dir: {output} is a file, and a folder is wanted"
    elif not above.is_dir():
        yield f"output_dir: {above} is a file, and {output} would lie below it"
    elif not os.access(above, os.W_OK | os.X_OK):
        yield f"output_dir: {above} cannot be written to"
    elif (other := taken(output)) is not None:
        yield f"output_dir: {other}"
    elif holds_student(output) and not settings.get("overwrite_output_dir") and not _resumes(settings):
        saved = any(output.glob("checkpoint-*"))
        goes_on = "go on from its last checkpoint with --resume_from_checkpoint true, " if saved else ""
        yield (
            f"output_dir: {output} holds a finished run, and nothing is written over it: take another --output_dir, "
            f"{goes_on}or replace it with --overwrite_output_dir true"
        )
    resume = settings.get("resume_from_checkpoint")
    if isinstance(resume, str) and resume.lower() not in ("true", "false") and not Path(resume).is_dir():
        yield f"resume_from_checkpoint: no such checkpoint: {resume}"


def _resume(settings: Settings) -> Iterator[str]:
    """What is wrong with the checkpoint that a run is to go on from."""
    key, name = "RESUME_CHECKPOINT", os.environ.get("RESUME_CHECKPOINT")
    if not name:
        key, name = "resume_from_checkpoint", settings.get("resume_from_checkpoint")
    if not isinstance(name, str) or name.lower() in ("", "true", "false"):
        return
    if Path(name).is_dir():
        reason, inside = flaw(name), [str(Path(name) / part) for part in folders_with(Path(name), (MANIFEST,))]
        if reason is not None:
            yield f"{key}: cannot resume from {name}: " + (f"name {' or '.join(inside)}" if inside else reason)
    elif key == "RESUME_CHECKPOINT":  # of the other it is known
        yield f"{key}: {no_folder(name, 'checkpoint')}"


def _packages(settings: Settings) -> Iterator[str]:
    yield from reporters.faults(settings.get("report_to"))
    for key, (values, module, package) in PACKAGES.items():
        given = settings.get(key)
        if (given in values if values else given) and not reporters.is_installed(module):
            yield f"{key} needs {module}: pip install {package}"
    optimizer = str(settings.get("optim") or "")
    for part, module in OPTIMIZERS.items():
        if part in optimizer and not reporters.is_installed(module):
            yield f"optim: {optimizer} needs {module}: pip install {module.replace('_', '-')}"
            break


def _together(settings: Settings) -> Iterator[str]:
    """Keys that need or exclude one another."""
    get, command = settings.get, settings.command
    if get("dataset_name") is None:
        yield f"`dataset_name` is required: {FORMS[command]}"
    if get("model_name_or_path") is None:
        yield "`model_name_or_path` is required: the student's name or path"
    if command == "wmtp" and get("algo") is None and not any("algo" in fault for fault in settings.faults):
        yield "`algo` must be one of mtp-baseline, critic-wmtp, rho1-wmtp, got None"
    if (get("mixing") is None) != (get("base_dataset_name") is None):
        yield "`mixing` and `base_dataset_name` belong together: set both, or neither"
    if get("load_in_4bit") and get("load_in_8bit"):
        yield "load_in_4bit and load_in_8bit exclude each other"
    if get("max_steps") == 0:
        yield f"max_steps must be at least 1, or left out for num_train_epochs={get('num_train_epochs')}; got 0"
    if get("bf16") and get("fp16"):
        yield "bf16 and fp16 exclude each other"
    if command != "kd" and get("eval_strategy") not in (None, "no") and get("eval_dataset_name") is None:
        yield f"eval_strategy={get('eval_strategy')!r} needs records to evaluate on: set `eval_dataset_name`"
    if command == "kd" and get("eval_strategy") not in (None, "no") and get("eval_dataset_name") is None:
        name = get("dataset_name") or ""
        if name.startswith(LAB_PREFIX) or name.endswith((".json", ".jsonl")):
            yield "`eval_strategy` needs questions to evaluate on: set `eval_dataset_name`, or leave it out"
    if get("load_best_model_at_end") and get("eval_strategy") != get("save_strategy") != "best":
        yield (
            f"load_best_model_at_end: eval_strategy={get('eval_strategy')!r} and "
            f"save_strategy={get('save_strategy')!r} must be the same"
        )
    if command == "skd" and not any(map(get, TEACHERS)):
        if not get("use_peft") and not get("teachers"):
            yield (
                "no teacher: set `teacher_model_name_or_path` or `teacher_model_server_url`, or give the student a "
                "LoRA adapter (`use_peft`), so that it can be its own teacher with the adapter switched off"
            )
    if get("use_cpu") and str(get("teacher_device") or "cpu").startswith(("cuda", "paired")):
        yield f"teacher_device={get('teacher_device')!r} is a GPU, and use_cpu is set"


def look(settings: Settings) -> tuple[list[str], list[str]]:
    """Every fault of a run that its files and packages show.

    Returns:
        Those for which nothing more can be looked at (keys, data, models), and the others.
    """
    found = list(settings.faults)
    found += _together(settings)
    if settings.command == "skd":
        arguments: Any = settings.as_arguments()
        found += value_faults(arguments)
        found += refused_settings(arguments)
    found += _data(settings)
    found += models(settings)
    found += _template(settings)
    other = [*_folder(settings), *_resume(settings), *_packages(settings)]
    if settings.get("probes") is not None:
        other += faulty_probes(settings.get("probes"))
    if settings.command == "skd" and not found:  # among which a file of another kind would be
        for key in DATA:
            if isinstance(name := settings.get(key), str):
                other += faulty_records(key, name, settings)
    return list(dict.fromkeys(found)), other
