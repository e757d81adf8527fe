"""`lupi export`: the student of a run as what a server loads."""

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

from ..lab.folders import ADAPTER_CONFIG
from ..publishing.targets import GGUF_TYPES, TARGETS
from .flags import check_models, json_object
from .model_folders import check_free


HELP = "the student of a run for vLLM, llama.cpp or Ollama: lupi export RUN --to vllm --output FOLDER"
DESCRIPTION = """\
An adapter is merged into its model, and what servers go by is made right: the generation config and the tokenizer end
an answer where the chat template ends a turn. What cannot be exported is refused before weights are loaded.

  hf      a folder that transformers loads, and most tools with it
  vllm    the same for `vllm serve`; with --adapter, the adapter alone, for `vllm serve BASE --enable-lora`
  gguf    one file for llama.cpp's server, with the chat template inside
  ollama  the same file and a Modelfile

  lupi export runs/mine --to vllm --output runs/mine-vllm
  lupi evaluate --server http://localhost:8000/v1 --probes probes.jsonl --compare runs/mine
"""
LONGEST_NAME = 96  # characters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class, parser.description = argparse.RawDescriptionHelpFormatter, DESCRIPTION
    add = parser.add_argument
    add("model", metavar="RUN", help="the folder of a run, an adapter or a model; a name of the Hub; or lab:NAME")
    add("--to", choices=TARGETS, required=True, help="what it is for")
    add("--output", type=Path, required=True, help="folder of what is written; nothing in it is written over")
    add("--name", help="that it is served by (default: that of the folder)")
    add("--base_dir", help="the model that an adapter was trained on (default: the one that it names)")
    add("--adapter", action="store_true", help="keep the adapter, and do not merge it (hf and vllm)")
    dtypes = ("auto", "float32", "bfloat16", "float16")
    add("--dtype", choices=dtypes, default="auto", help="type of the weights of hf and vllm (auto: that of the files)")
    add("--type", choices=GGUF_TYPES, help="type of the weights in a GGUF file (default: f16)")
    add("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py, for models that are not written here")
    add("--draft_of", metavar="TEACHER", help="README says how it drafts for this model on vLLM (--to vllm)")
    add(
        "--chat_template_kwargs",
        type=json_object,
        default={},
        metavar="JSON",
        help="become defaults of the chat template, as in the recipe: '{\"enable_thinking\": false}'",
    )


def check_flags(args: argparse.Namespace, is_adapter: bool) -> None:
    """Refuse flags that have no effect.

    Raises:
        ValueError: which one.
    """
    is_gguf = args.to in ("gguf", "ollama")
    if args.adapter and is_gguf:
        raise ValueError(f"--adapter goes with --to hf and vllm: for {args.to}, the adapter is merged")
    if args.adapter and not is_adapter:
        raise ValueError(f"--adapter: {args.model} is no adapter, but a complete model")
    if args.dtype != "auto" and (is_gguf or args.adapter):
        raise ValueError(
            "--dtype is of the weights of hf and vllm; "
            + ("of a GGUF file: --type" if is_gguf else "an adapter keeps its own")
        )
    if not is_gguf and (args.converter or args.type):
        raise ValueError(f"--{'converter' if args.converter else 'type'} is of a GGUF file, with --to gguf or ollama")
    args.type = args.type or "f16"
    if args.draft_of and (args.to != "vllm" or args.adapter):
        raise ValueError("--draft_of is of a complete model for vLLM: --to vllm, without --adapter")
    if args.base_dir and not is_adapter:
        raise ValueError(f"--base_dir: {args.model} is no adapter, but a complete model")
    check_name(args)
    folder, output = Path(args.model).expanduser().resolve(), args.output.resolve()
    if folder in output.parents and folder.is_dir():
        raise ValueError(f"--output {args.output} is inside of {args.model}, which would be sent and served with it")


def check_name(args: argparse.Namespace) -> None:
    """Refuse what cannot be the name of a served model, of its file, and a word of a command.

    Raises:
        ValueError: such a name.
    """
    if not (name := args.name if args.name is not None else args.output.name):
        raise ValueError(f"--output {args.output} has no name: name a new folder")
    allowed, what = (
        r"\w[^/\x00-\x1f\x7f]*",
        "begins with a letter, a digit or _, and has no slash and no control character",
    )
    if args.to == "ollama":
        allowed, what = r"[A-Za-z0-9][\w.:-]*", "is of letters, digits and . _ - : alone"
    if len(name) > LONGEST_NAME or not re.fullmatch(allowed, name, re.ASCII if args.to == "ollama" else 0):
        hint = "" if args.name is not None else ": give another, as --name"
        raise ValueError(
            f"--name {name[:LONGEST_NAME]!r} cannot be that of a served model: it {what}, and has at most "
            f"{LONGEST_NAME} characters{hint}"
        )


def main(args: argparse.Namespace) -> int:
    """Write what is asked for, all of it or nothing.

    Raises:
        ValueError: flags that do not go together, or a student that cannot be exported so; it says why.
        OSError: there is no such student, or the folder has something in it.
    """
    check_models({"RUN": args.model, "--draft_of": args.draft_of})
    from ..lab import resolve_model
    from .merge import find_base

    folder = Path(resolve_model(args.model))
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    check_flags(args, is_adapter)
    check_free(args.output)
    base = find_base(argparse.Namespace(base_dir=args.base_dir, stage=1), folder) if is_adapter else None
    from ..publishing.export import find_student
    from ..publishing.gguf_file import check_gguf
    from ..publishing.gguf_vocabulary import unread
    from ..publishing.modelfile import find_turns
    from ..training.progress import quiet_bars

    student = find_student(args.model, base, args.chat_template_kwargs)
    if args.draft_of:
        from ..publishing.export import check_draft

        check_draft(student, args.draft_of)
    rank = None
    if args.adapter and args.to == "vllm":
        from ..publishing.export import check_adapter_for_vllm

        rank = check_adapter_for_vllm(student.folder, student.config)
    if args.to in ("gguf", "ollama"):
        check_gguf(student.config, student.tokenizer, args.type, args.converter)
        if args.converter is None and (note := unread(student.tokenizer)) is not None:
            student.notes.append(note)
        if isinstance(ends := student.generation.eos_token_id, list) and len(ends) > 3:
            student.notes.append("a GGUF file has room for three ends: of the others, llama.cpp knows those by name")
    if args.to == "ollama":
        find_turns(student.tokenizer)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=f".{args.output.name}-") as work, quiet_bars():
        made = Path(work, args.output.name)
        try:
            said = write(args, student, made, rank)
        except ValueError as error:  # which may name the folder that is gone when it is read
            raise ValueError(str(error).replace(str(made), str(args.output))) from error
        made.replace(args.output)
    print(f"exported to {args.output}\n{said}")
    return 0


def write(args: argparse.Namespace, student: Any, made: Path, rank: int | None) -> str:
    """Write the export into a new folder; returns what is to be said of it."""
    from ..lab import resolve_model
    from ..publishing.export import save_adapter, save_merged
    from ..publishing.gguf_file import write_gguf
    from ..publishing.modelfile import modelfile
    from ..publishing.serving_page import (
        about_heads,
        drafting_command,
        drafting_page,
        own_card,
        public,
        serving_commands,
        serving_page,
    )
    from ..publishing.student_files import student_files

    name = args.name or args.output.name
    chosen: dict[str, Any] = {"made of": f"`{Path(args.model).name}`, by `lupi export --to {args.to}`"}
    with_heads = args.to == "hf" and not args.adapter
    file = drafting = None
    if args.to in ("gguf", "ollama"):
        made.mkdir()
        file = f"{name}-{args.type}.gguf"
        with tempfile.TemporaryDirectory(dir=made.parent) as complete:
            save_merged(student, Path(complete), "auto", with_heads=False)
            options = (student.tokenizer, student.generation, args.converter)
            write_gguf(Path(complete), made / file, args.type, *options)
        chosen["weights"] = f"`{file}`, of the type {args.type}"
        card = f"# {name}\n"
        if args.to == "ollama":
            positions = getattr(student.config, "max_position_embeddings", None)
            text = modelfile(file, student.tokenizer, student.generation, positions)
            (made / "Modelfile").write_text(text, encoding="utf-8")
    elif args.adapter:
        save_adapter(student, made)
        shown = public(student.base, "BASE")
        chosen["adapter"] = f"of the rank {rank}, on `{shown}`" if rank else f"on `{shown}`"
        path = Path(student.folder) / "README.md"
        card = path.read_text(encoding="utf-8") if path.is_file() else f"# {name}\n"
    else:
        save_merged(student, made, args.dtype, with_heads)
        chosen["weights"] = "of the type of their files" if args.dtype == "auto" else f"of the type {args.dtype}"
        card = own_card(student, name)
    heads = about_heads(student, args.to, with_heads)
    base = student.base if args.adapter else None
    command = next(iter(serving_commands(args.to, name, file, base and resolve_model(base), rank)), None)
    commands = serving_commands(args.to, name, file, base and public(base, "BASE"), rank)
    page = serving_page(student, args.to, name, commands, chosen, heads)
    if args.draft_of:
        page += drafting_page(public(args.draft_of, "TEACHER"))
        drafting = f"as the draft of its teacher: {drafting_command(resolve_model(args.draft_of))}"
    (made / "README.md").write_text(f"{card.rstrip()}\n\n{page}", encoding="utf-8")
    if file is None:
        student_files(made)  # raises where it is not complete
    said = [*student.notes, heads, f"in that folder: {command}" if command else "", drafting]
    return "\n".join(filter(None, said))
