"""`lupi new`: a folder with a recipe for one's own records, a short one that says when to change what."""

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.wording import counted
from .flags import ANSWER_AT_ONCE


if TYPE_CHECKING:
    from .new_recipe import Found


HELP = "begin: write a recipe for your own records into a folder"
DESCRIPTION = """\
Writes FOLDER/recipe.yaml, for the records and probes that lie in the folder (.json or .jsonl; they are told apart by
what is in them). Where there are none, a few examples of their form are written beside it. Nothing is written over.

  lupi new handbook                                       the student is its own teacher: one small model, an adapter
  lupi new handbook --teacher Qwen/Qwen3-32B              a larger teacher, loaded beside the student
  lupi new handbook --teacher http://localhost:8000       a teacher on a vLLM server
  lupi new handbook --documents docs/ --teacher MODEL     records are made of documents, by `lupi data make`
"""
MODELS = {"cpu": "HuggingFaceTB/SmolLM2-135M-Instruct", "cuda": "Qwen/Qwen3-4B"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class, parser.description = argparse.RawDescriptionHelpFormatter, DESCRIPTION
    add = parser.add_argument
    add("folder", metavar="FOLDER", type=Path, help="is made if it is not there")
    add("--model", help=f"the student (default: {MODELS['cpu']} on a CPU, {MODELS['cuda']} on a GPU)")
    add("--teacher", help="a name, a path, or the URL of a vLLM server (default: the student, reading the knowledge)")
    add("--records", help="file of records, if it is not the one in the folder")
    add("--probes", help="file of closed-book questions, if it is not the one in the folder")
    add("--documents", type=Path, metavar="DOCUMENTS", help="a folder of documents, of which records are made first")
    add("--device", choices=tuple(MODELS), help="where it will be trained (default: the GPU, if there is one)")


def main(args: argparse.Namespace) -> int:
    """Write the recipe, and say what comes next.

    Raises:
        FileExistsError: there is a recipe already.
        ValueError: a file that cannot be read, or several files that may be meant.
    """
    from .new_recipe import find_files, make_examples, missing_gpu, recipe_text

    path = args.folder / "recipe.yaml"
    if args.folder.exists() and not args.folder.is_dir():
        raise FileExistsError(f"{args.folder} is a file: name a folder for the recipe")
    if path.exists():
        raise FileExistsError(f"{path} exists already; nothing was written")
    if args.documents is not None:
        return make_of_documents(args)
    found = find_files(args.folder, args.records, args.probes)
    device = args.device or default_device()
    args.folder.mkdir(parents=True, exist_ok=True)
    if found.records is None:
        found = make_examples(args.folder, found)
    model = args.model or MODELS[device]
    path.write_text(recipe_text(found, model, args.teacher, device, args.folder), encoding="utf-8")
    probes = f"probes from {found.probes}" if found.probes else "no probes"
    print(f"{path}: {counted(len(found.rows), 'record')}, {probes}")
    if line := missing_gpu(device):
        print(line)
    print("Next:", *next_commands(args.folder, found, model, args.teacher), sep="\n  ")
    return 0


def make_of_documents(args: argparse.Namespace) -> int:
    """What `lupi data make` does, with the folder as its output; the recipe is written there.

    Raises:
        ValueError: records or probes are named as well, or as [`data_make.main`].
    """
    from . import data_make
    from .new_recipe import thinks

    for name in ("records", "probes"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} and --documents: records and probes are made of the documents; leave one out")
    parser = argparse.ArgumentParser()
    data_make.add_arguments(parser)
    student = args.model or MODELS[args.device or default_device()]
    teacher = args.teacher or student
    given = [str(args.documents), "--student", student, "--output", str(args.folder)]
    given += ["--teacher_server" if teacher.startswith("http") else "--teacher", teacher]
    if thinks(student) or thinks(teacher):
        given += ["--chat_template_kwargs", json.dumps(ANSWER_AT_ONCE)]
    return data_make.main(parser.parse_args([*given, *(["--device", args.device] if args.device else [])]))


def next_commands(folder: Path, found: "Found", model: str, teacher: str | None) -> list[str]:
    """From the records to a student that is asked."""
    from .new_recipe import PERSONA

    run, records = (folder / "run").as_posix(), str(found.records)
    probes = ["--probes", found.probes] if found.probes else []
    commands = [["data", "check", records, *probes], ["skd", "--config", (folder / "recipe.yaml").as_posix()]]
    if probes:
        reads = ["--teacher", teacher or model, "--teacher_system_prompt", PERSONA, "--records", records]
        served = teacher is not None and teacher.startswith("http")
        commands.append(["evaluate", "--model", run, "--before", model, *probes, *([] if served else reads)])
    commands += [["merge", run, "--out", f"{run}-merged"], ["ask", f"{run}-merged", "A QUESTION"]]
    return [shlex.join(["lupi", *words]) for words in commands]


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
