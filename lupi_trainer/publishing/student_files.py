"""Which files of a folder are the student: those that are sent to the Hub, each of them checked first."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..data.credentials import known_secrets, looks_secret
from ..lab.folders import folders_with, no_folder
from ..training.reporters import FOLDERS


WEIGHTS, WEIGHTS_INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
# Weights are safetensors and nothing else: a pickle runs code when it is read.
_SENT = {".safetensors", ".json", ".jinja", ".md", ".txt", ".model", ".tiktoken", ".py"}
_OF_THE_RUN = re.compile(
    r"trainer_state\.json|checkpoint_manifest\.json|(?:rollout|loss)_state_\d+\.json|metrics\.json|kd_result\.json"
    r"|sweep_settings\.json|run_notes\.json"
)
_FOLDERS_OF_THE_RUN = {"runs", *FOLDERS}


def _belongs(relative: Path) -> bool:
    if any(part.startswith((".", "_", "checkpoint-")) for part in relative.parts):
        return False
    if _FOLDERS_OF_THE_RUN & set(relative.parts[:-1]) or _OF_THE_RUN.fullmatch(relative.name):
        return False
    return relative.suffix in _SENT


def student_files(folder: str | Path) -> dict[str, Path]:
    """The files of a saved student, by their path in a repository.

    Everything that the trainer saved is part of it (weights or adapter, heads, tokenizer, generation config, card);
    checkpoints, logs, the run's state and everything pickled are not.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no student or an incomplete one, pickled weights, no chat template, no card, a link out of the
            folder, or a secret inside a file; the message names what.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(no_folder(folder, "folder"))
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    files = {p.relative_to(folder).as_posix(): p for p in paths if _belongs(p.relative_to(folder))}
    root = folder.resolve()
    for name, path in files.items():
        if not path.resolve().is_relative_to(root):
            raise ValueError(f"{folder}: {name} is a link out of the folder; only files inside it are sent")
    _check_weights(folder, files)
    _check_tokenizer(folder, files)
    if "README.md" not in files:
        raise ValueError(f"{folder} has no model card (README.md): the trainers here write it with `save_model`")
    for name, secret in find_secrets(files):
        raise ValueError(f"{folder}: {name} holds {secret}; take it out before the folder is sent anywhere")
    return files


def _check_weights(folder: Path, files: dict[str, Path]) -> None:
    if WEIGHTS_INDEX in files:
        shards = set(read_json(files[WEIGHTS_INDEX]).get("weight_map", {}).values())
        missing = sorted(str(shard) for shard in shards if shard not in files)
        if missing or not shards:
            raise ValueError(f"{folder}: {WEIGHTS_INDEX} names files that are not there: {missing}")
    elif ADAPTER not in files and WEIGHTS not in files:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
        if pickled:
            raise ValueError(f"{folder} has pickled files alone ({', '.join(pickled)}): weights are safetensors here")
        inside = [str(folder / name) for name in folders_with(folder, (WEIGHTS, WEIGHTS_INDEX, ADAPTER))]
        elsewhere = f", but {' and '.join(inside)} inside it: push one of these" if inside else ""
        raise ValueError(f"{folder} holds no student: neither {WEIGHTS} nor {ADAPTER}{elsewhere}")
    config = "adapter_config.json" if ADAPTER in files else "config.json"
    if config not in files:
        raise ValueError(f"{folder} has weights, but no {config}")
    read_json(files[config])
    for name, path in files.items():
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="numpy"):
                    pass  # reading the header compares it with the file's size
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{folder}: {name} is not a complete safetensors file ({error})") from error


def _check_tokenizer(folder: Path, files: dict[str, Path]) -> None:
    if "tokenizer_config.json" not in files:
        raise ValueError(f"{folder} has no tokenizer (tokenizer_config.json)")
    if "chat_template.jinja" not in files and not read_json(files["tokenizer_config.json"]).get("chat_template"):
        raise ValueError(f"{folder}: the tokenizer has no chat template, so nobody could ask the student anything")


def read_json(path: Path) -> dict:
    """The object in a JSON file.

    Raises:
        ValueError: it holds no JSON object; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object, found {type(content).__name__}")
    return content


def find_secrets(files: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """(file, what it holds) for every secret in a text file of the student; the secret itself is never shown."""
    secrets = known_secrets()
    for name, path in files.items():
        if path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8", errors="ignore")
            if found := next((what for value, what in secrets.items() if value in text), None):
                yield name, found
            elif looks_secret(text):
                yield name, "what looks like a token or password"
