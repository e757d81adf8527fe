"""A trained student as the folder that a server loads: adapter merged or kept, ends and chat template right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ..data.prompts import check_turns, encode
from ..lab import resolve_model
from ..lab.folders import ADAPTER_CONFIG
from ..models.adapters import load_adapter, merge_adapter, refuse_adapter
from ..models.generation import make_savable
from ..models.head_check import refuse_encoder_decoder
from ..models.hub_code import refuse_hub_code
from ..models.loading import NO_CODE, load_complete, refuse_quantized
from ..models.vocabulary import check_tokenizer, check_vocabularies
from .ends import make_sampling_valid, set_ends, set_template_defaults
from .student_files import ADAPTER, read_json


HEADS = ("mtp_heads.json", "mtp_heads.safetensors")
# of an adapter, what vLLM's LoRA does not load: setting -> value that it must have, if it is there
_VLLM_LORA = {
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "bias": ("none", None),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "lora_bias": (False, None),
}


@dataclass
class Student:
    """What is exported, before any of its weights is loaded.

    Attributes:
        name: as it was given.
        folder: where it is, or its name on the Hub.
        base: of an adapter, what it was trained on; `None` for a model.
        config: of the model, or of an adapter's base.
        tokenizer: its own, or the base's, with the chat template and the end of turn that it is served with.
        generation: its generation config, with these ends.
        notes: what was made right, or cannot be, a line each.
    """

    name: str
    folder: str
    base: str | None
    config: Any
    tokenizer: Any
    generation: GenerationConfig
    notes: list[str] = field(default_factory=list)

    @property
    def heads(self) -> list[Path]:
        """Files of heads that predict further ahead."""
        return [path for file in HEADS if (path := Path(self.folder) / file).is_file()]


def find_student(name: str, base: str | None = None, template_kwargs: Mapping[str, Any] | None = None) -> Student:
    """What is known of a student without its weights.

    Args:
        name: a folder of a run, of an adapter or of a model; `lab:NAME`; or a name of the Hub.
        base: what an adapter was trained on, where it is one.
        template_kwargs: become defaults of the chat template.

    Raises:
        ValueError: no chat template, one that cannot write a question, or no end of text; a file that cannot be read;
            a base that is an adapter; a model that is quantized, an encoder-decoder, or one that is code of its own.
        OSError: there is no such model, or no tokenizer.
    """
    folder = resolve_model(name)
    weights = folder if base is None else resolve_model(base)
    own = base is None or (Path(folder) / "tokenizer_config.json").is_file()
    if base is not None:
        refuse_adapter(weights, "base")
        refuse_hub_code(weights)
        open_adapter(folder)
    config, tokenizer = _read(AutoConfig, weights), _read(AutoTokenizer, folder if own else weights)
    check_tokenizer(tokenizer)
    refuse_quantized(config, "student" if base is None else "base")
    refuse_encoder_decoder(config, "student")
    unread = [name for name in template_kwargs or {} if name not in tokenizer.get_chat_template()]
    set_template_defaults(tokenizer, template_kwargs or {})
    question = [{"role": "user", "content": "Who?"}]
    encode(tokenizer, [question])
    check_turns(tokenizer, [question])
    generation = _generation_config(weights, config)
    student = Student(name, folder, base, config, tokenizer, generation)
    student.notes += [f"chat_template_kwargs: the chat template does not read {name!r}" for name in unread]
    student.notes += [*make_sampling_valid(generation), *set_ends(generation, tokenizer)]
    return student


def _read(kind: Any, path: str) -> Any:
    """A tokenizer or a configuration.

    Raises:
        OSError: it is not there.
        ValueError: it cannot be read; transformers fails in many ways at files that are broken.
    """
    what = "tokenizer" if kind is AutoTokenizer else "configuration"
    try:
        return kind.from_pretrained(path, **NO_CODE)
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        kind_of_error = OSError if isinstance(error, OSError) else ValueError
        raise kind_of_error(f"{path}: no {what} can be read from it ({why[:300]})") from error


def _generation_config(path: str, config: Any) -> GenerationConfig:
    """The generation config of a model, or where it has none, the one that a model is made with.

    Raises:
        ValueError: its file cannot be read, or transformers refuses what is in it.
    """
    file = Path(path) / "generation_config.json"
    if file.is_file():
        read_json(file)
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:
        return GenerationConfig.from_model_config(config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def check_adapter_for_vllm(folder: str, config: Any) -> int:
    """Refuse an adapter that vLLM would not load; returns its rank.

    Args:
        folder: of the adapter.
        config: of the model that it is for.

    Raises:
        ValueError: it is of another kind than LoRA, has a setting that vLLM does not know, or matrices that do not fit
            the model; the message names it.
    """
    path = Path(folder) / ADAPTER_CONFIG
    settings = read_json(path)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ValueError(
            f"{path}: vLLM loads adapters of LoRA alone, and this is {kind}: leave --adapter out, and it is merged"
        )
    for key, right in _VLLM_LORA.items():
        if key in settings and settings[key] not in right:
            raise ValueError(
                f"{path}: vLLM loads no adapter with {key}={json.dumps(settings[key])}: leave --adapter out, and it "
                "is merged"
            )
    if type(rank := settings.get("r")) is not int or rank < 1:
        raise ValueError(f"{path}: r must be the rank of the adapter, a number, got {rank!r}")
    with open_adapter(folder) as weights:
        shapes = {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}
        other = [key for key in shapes if ".lora_" not in key]
    if other:
        raise ValueError(
            f"{folder}: vLLM loads matrices of LoRA alone, and the adapter has {other[0]}, too: leave "
            "--adapter out, and it is merged"
        )
    with torch.device("meta"):
        own = dict(AutoModelForCausalLM.from_config(config).named_parameters())
    for key, shape in shapes.items():
        name, _, part = key.removeprefix("base_model.model.").partition(".lora_")
        weight = own.get(f"{name}.weight")
        if weight is not None and ".embed_tokens" not in name:
            wanted = (rank, weight.shape[1]) if part.startswith("A") else (weight.shape[0], rank)
        if weight is None or (".embed_tokens" not in name and shape != wanted):
            found = f"is {list(shape)}, and {list(wanted)} is wanted" if weight is not None else "has no place in it"
            raise ValueError(f"{folder} is no adapter of rank {rank} of this {config.model_type}: {key} {found}")
    return rank


def check_draft(student: Student, teacher: str) -> None:
    """Refuse a student that vLLM would not take for the draft of a teacher.

    Raises:
        ValueError: they do not have the same tokens, or as many embeddings: vLLM compares the two token by token.
    """
    path = resolve_model(teacher)
    refuse_adapter(path, "teacher")
    refuse_hub_code(path)
    config, tokenizer = _read(AutoConfig, path), _read(AutoTokenizer, path)
    check_vocabularies(student.config, config, student.tokenizer, tokenizer)
    ours, theirs = (one.get_text_config().vocab_size for one in (student.config, config))
    if ours != theirs:
        raise ValueError(
            f"--draft_of: vLLM wants as many embeddings of both; the student has {ours}, {teacher} {theirs}"
        )


def open_adapter(folder: str) -> Any:
    """The weights of an adapter, to be read one by one.

    Raises:
        FileNotFoundError: there are none, or they are no safetensors.
        ValueError: the file is not complete.
    """
    path = Path(folder) / ADAPTER
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {ADAPTER}")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file ({error})") from error


def save_merged(student: Student, target: Path, dtype: str, with_heads: bool) -> None:
    """Write the student as one model that any tool loads, with its tokenizer.

    Args:
        student: what is exported.
        target: the folder.
        dtype: type of the weights; `"auto"`: that of the files.
        with_heads: whether heads that predict further ahead go along.

    Raises:
        ValueError: files that lack weights, an adapter that does not belong to its base or cannot be merged.
    """
    if student.base is None:
        model = load_complete(student.name, "student", dtype=dtype)
    else:
        base = load_complete(student.base, "base", dtype=dtype)
        model = merge_adapter(load_adapter(base, student.folder))
    model.generation_config = student.generation
    if getattr(model.config, "eos_token_id", None) is not None:
        model.config.eos_token_id = student.generation.eos_token_id
    make_savable(model)
    model.save_pretrained(target)
    student.tokenizer.save_pretrained(target)
    if with_heads:
        for path in student.heads:
            shutil.copyfile(path, target / path.name)


def save_adapter(student: Student, target: Path) -> None:
    """Write the adapter as it is, with the tokenizer, the ends and the chat template that it is served with.

    Raises:
        FileNotFoundError: its weights are missing, or are no safetensors.
    """
    open_adapter(student.folder)
    target.mkdir(parents=True, exist_ok=True)
    for file in (ADAPTER_CONFIG, ADAPTER):
        shutil.copyfile(Path(student.folder) / file, target / file)
    student.tokenizer.save_pretrained(target)
    make_savable(SimpleNamespace(config=student.config, generation_config=student.generation))
    student.generation.save_pretrained(target)
