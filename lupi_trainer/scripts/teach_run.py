"""What `lupi teach` does: a recipe's records, its teacher, and the store that comes of both."""

import copy
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from ..data.prompts import Words
from ..data.records import load_base_data, load_training_data
from ..data.teacher_names import RUN
from ..data.turns import expand_turns
from ..data.wording import counted
from ..lupi_skd.axolotl import KnownTexts, read_rows, unknown_tokens
from ..lupi_skd.checks import ready_records
from ..lupi_skd.setup import TeacherKind, student_tokenizer, teacher_kind, teacher_prompt_of, to_source
from ..lupi_skd.store import TeacherStore
from ..lupi_skd.teach import LoadedWriter, ServedWriter, Writer, entries_of, make_manifest, write_store
from ..lupi_skd.teachers import known_teachers
from ..lupi_skd.texts import GivenTexts
from ..models.generation import common_ends
from ..models.head_check import check_head
from ..models.loading import repository_options
from ..models.vocabulary import check_vocabularies
from ..teachers.loaded import load_teacher, teacher_generation_config
from . import setting_up
from .common import student_arguments
from .lupi_skd import make_parser
from .teach import check_policy


def write(words: list[str], folder: Path, samples: int, shard_rows: int, axolotl: Path | None = None) -> str:
    """Write a store as a command line says; returns a line about it."""
    arguments = make_parser("lupi teach").parse_args_and_config(words)
    if axolotl is None:
        store, written = write_store_of(*arguments, folder, samples=samples, shard_rows=shard_rows)
    else:
        store, written = write_store_of_rows(*arguments, folder, axolotl, samples=samples, shard_rows=shard_rows)
    known, tokens, size = store.manifest, store.tokens(), store.size()
    now = f"{written} of {len(list(known.shards()))} shards written now"
    return (
        f"{folder}: {counted(known.rows, 'text')} of {counted(known.prompts, 'prompt')}, {tokens:,} tokens with their "
        f"{known.top_k} likeliest; {size:,} bytes, {size / tokens:.1f} a token ({now})"
    )


def _datasets(data_args: Any) -> list[Any]:
    """All records that a run of the recipe would read, each once."""
    found = [
        load_training_data(
            data_args.dataset_name, config=data_args.dataset_config, split=data_args.dataset_train_split
        )
    ]
    if data_args.base_dataset_name is not None:
        given = {"config": data_args.base_dataset_config, "split": data_args.base_dataset_split}
        found.append(load_base_data(data_args.base_dataset_name, **given))
    if data_args.train_turns == "all":
        found = [expand_turns(records) for records in found]
    if data_args.eval_dataset_name is not None:
        found.append(load_training_data(data_args.eval_dataset_name))
    return found


def _check(args: Any, samples: int) -> None:
    """Refuse what no store can be written with.

    Raises:
        ValueError: which setting that is.
    """
    check_policy(args.rollout_policy)
    if args.teachers or args.base_teacher != RUN:
        raise ValueError("a store has the texts of one teacher: leave out teachers and base_teacher")
    if args.world_size > 1:
        raise ValueError("a store is written by one process, whose teacher may lie on several GPUs")
    if samples > 1 and (args.rollout_policy == "gold" or args.teacher_temperature == 0):
        why = "rollout_policy='gold'" if args.rollout_policy == "gold" else "teacher_temperature=0"
        raise ValueError(f"--samples {samples}: with {why} all texts of a prompt would be the same; leave it out")


def _generation_config(student: str, args: Any) -> GenerationConfig:
    """That of the student, whose weights are not loaded here."""
    options = repository_options(args)
    try:
        return GenerationConfig.from_pretrained(student, **options)
    except OSError:
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(student, **options))


def _as_its_own_teacher(args: Any, model_args: Any) -> None:
    """Let a student that teaches itself be loaded as it is trained."""
    args.teacher_model_revision, args.teacher_dtype = model_args.model_revision, str(model_args.dtype or "auto")
    args.teacher_attn_implementation = model_args.attn_implementation
    args.teacher_load_in_4bit, args.teacher_load_in_8bit = model_args.load_in_4bit, model_args.load_in_8bit
    args.teacher_bnb_4bit_quant_type = model_args.bnb_4bit_quant_type
    args.teacher_use_bnb_nested_quant = model_args.use_bnb_nested_quant


@setting_up()
def write_store_of(
    data_args: Any, training_args: Any, model_args: Any, folder: Path, *, samples: int = 1, shard_rows: int = 256
) -> tuple[TeacherStore, int]:
    """Write the store that a recipe describes, or what it lacks.

    Args:
        data_args, training_args, model_args: the recipe; its `teacher_store` is not read.
        folder: of the store.
        samples: texts of each prompt.
        shard_rows: texts of a shard.

    Returns:
        The store, and how many of its shards were written now.

    Raises:
        ValueError: anything that training with this teacher would refuse, a store of other texts in the folder, or a
            setting that no store can be written with.
    """
    args = copy.copy(training_args)
    args.teacher_store, args.report_to = None, []
    _check(args, samples)
    student = student_arguments(args, model_args)
    named = args.teacher_model_name_or_path
    source: Any = named and to_source(named, "teacher_model_name_or_path")
    kind = teacher_kind(source, args, student["model"], student["peft_config"])
    tokenizer = student_tokenizer(student["model"], args, None)
    teachers = known_teachers(args, student["model"], source, kind, student["peft_config"], tokenizer)
    pair, prompt = teachers.first.pair, teachers.first.prompt
    datasets = [ready_records(records, tokenizer, teachers, args) for records in _datasets(data_args)]
    own = Words(tokenizer, args.chat_template_kwargs or {})
    given = GivenTexts(args, own, prompt, None, pair.vocab_size)
    entries = entries_of(datasets, given, prompt, own)

    if kind is TeacherKind.SELF:
        source, named = student["model"], model_args.model_name_or_path
        _as_its_own_teacher(args, model_args)
    teacher: Any = teacher_generation_config(source, args) if source else None
    if kind is not TeacherKind.REMOTE:
        teacher = load_teacher(source, args, args.device)
        check_head(teacher, "teacher")
    words = prompt.words or own
    ends = common_ends(
        _generation_config(student["model"], args),
        tokenizer,
        teacher,
        pair.teacher_tokenizer,
        pair.vocab_size,
        words.template_kwargs,
        **own.template_kwargs,
    )
    writer: Writer
    if pair.server is not None:
        writer, named = ServedWriter(pair.server, args, ends), named or pair.server.name
    else:
        writer = LoadedWriter(teacher, args, pair.vocab_size, ends, tokenizer.pad_token_id)
    its_tokenizer = pair.teacher_tokenizer or tokenizer
    manifest = make_manifest(
        entries,
        args,
        its_tokenizer,
        words,
        model=named,
        revision=args.teacher_model_revision,
        server=pair.server is not None,
        samples=samples,
        top_k=writer.k,
        vocab_size=pair.vocab_size,
        ends=ends,
        shard_rows=shard_rows,
    )
    written = write_store(folder, manifest, entries, writer, its_tokenizer)
    return TeacherStore(folder), written


@setting_up()
def write_store_of_rows(
    data_args: Any, training_args: Any, model_args: Any, folder: Path, path: Path, *, samples: int, shard_rows: int
) -> tuple[TeacherStore, int]:
    """As [`write_store_of`], of rows that axolotl distills from; no teacher is loaded or asked.

    Args:
        path: of the rows; their teacher is the one that the recipe names.

    Raises:
        ValueError: rows that are not exactly texts of a store (their number is said), or several samples.
    """
    args = copy.copy(training_args)
    args.teacher_store, args.report_to = None, []
    _check(args, samples)
    if samples > 1:
        raise ValueError(f"--samples {samples}: --axolotl takes the rows as they are; leave it out")
    if args.teacher_model_name_or_path is None:
        raise ValueError("--axolotl: set teacher_model_name_or_path to the teacher that the rows are of")
    student = student_arguments(args, model_args)["model"]
    tokenizer = student_tokenizer(student, args, None)
    config = AutoConfig.from_pretrained(student, **repository_options(args))
    vocab_size = check_vocabularies(config, config, tokenizer)
    own = Words(tokenizer, args.chat_template_kwargs or {})
    texts = KnownTexts(read_rows(path), own, args.loss_top_k, args.rollout_policy == "gold")
    if strange := unknown_tokens(texts, vocab_size):
        raise ValueError(f"{strange[0]}: a token beyond the {vocab_size} of the student: another vocabulary")
    ends = common_ends(_generation_config(student, args), tokenizer, None, None, vocab_size, **own.template_kwargs)
    manifest = make_manifest(
        texts.entries,
        args,
        tokenizer,
        teacher_prompt_of(args, tokenizer, None).words or own,
        model=args.teacher_model_name_or_path,
        revision=args.teacher_model_revision,
        server=False,
        samples=1,
        top_k=texts.k,
        vocab_size=vocab_size,
        ends=ends,
        shard_rows=shard_rows,
    )
    written = write_store(folder, manifest, texts.entries, texts, tokenizer)
    return TeacherStore(folder), written
