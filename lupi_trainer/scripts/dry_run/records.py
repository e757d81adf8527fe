"""Every record of a run against every limit: not the first that does not fit, but all of them."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from transformers import AutoTokenizer

from ...data.check import check_probes
from ...data.prompts import Words
from ...data.records import load_records, normalize_record, record_name, sft_row, to_columns
from ...data.special_tokens import SpecialTokens
from ...data.squad import check_qa_record, raw_questions, tokenize_qa
from ...data.turns import turns_of
from ...lab import LAB_PREFIX, load_lab_records, resolve_model
from ...lupi_skd.checks import Reading, read_records
from ...lupi_skd.setup import student_tokenizer, teacher_kind, to_source
from ...lupi_skd.teachers import known_teachers
from ...lupi_skd.texts import GivenTexts
from ..kd_lora import evaluation_source
from .report import Report


Record = dict[str, Any]


def _each(
    records: Iterable[Record],
    read: Callable[[Record, int], Any],
    report: Report,
    source: str,
    named: Callable[[Record, int], str] = record_name,
) -> list[Any]:
    """What `read` makes of each record, the faults of those that it refuses taken down."""
    found, faults = [], []
    for number, record in enumerate(records):
        try:
            found.append(read(record, number))
        except ValueError as error:
            faults.append((named(record, number), str(error)))
    report.refuse_records(source, faults)
    if not found and not faults:
        report.refuse(f"{source}: the dataset is empty")
    return found


def _numbered(reading: Reading) -> tuple[str, str]:
    """(name of a faulty record with its number, since an id may be another's too; its fault)."""
    name = record_name(reading.row, reading.row["row_id"])
    return name, str(reading.error).removeprefix(f"{record_name(reading.row)}: ")


def _columns(record: Record, number: int) -> Record:
    return normalize_record(record, number)


def _base_columns(record: Record, number: int) -> Record:
    return normalize_record(record, number, needs_context=False)


def round_up(tokens: int) -> int:
    """A limit that such a length fits, with a little room."""
    return -(-max(tokens, 1) // 64) * 64


def check_skd(data_args: Any, args: Any, model_args: Any, peft_config: Any, report: Report) -> int:
    """Records of `lupi skd`; returns how many the training set has, base records apart."""
    student = to_source(model_args.model_name_or_path, "model_name_or_path")
    key = "teacher_model_name_or_path"
    teacher: Any = args.teacher_model_name_or_path and to_source(args.teacher_model_name_or_path, key)
    kind = teacher_kind(teacher, args, student, peft_config)
    tokenizer = student_tokenizer(student, args, None)
    teachers = known_teachers(args, student, teacher, kind, peft_config, tokenizer)
    # the positions of both models are looked at for every record, so that this is no line of transformers
    for one in filter(None, (tokenizer, *(each.pair.teacher_tokenizer for each in teachers))):
        one.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    given, first = None, teachers.first
    if args.teacher_store or args.gold_alpha or args.rollout_policy == "gold":
        words = Words(tokenizer, args.chat_template_kwargs or {})
        given = GivenTexts(args, words, first.prompt, first.pair.store, first.pair.vocab_size)
    sources = [
        (data_args.dataset_name, data_args.dataset_config, data_args.dataset_train_split, _columns),
        (data_args.base_dataset_name, data_args.base_dataset_config, data_args.base_dataset_split, _base_columns),
        (data_args.eval_dataset_name, None, "train", _columns),
    ]
    counts, readings = [], []
    for source, config, split, columns in sources:
        if source is None:
            continue
        rows = _each(load_records(source, config, split), columns, report, source)
        if data_args.train_turns == "all" and source != data_args.eval_dataset_name:
            rows = [row | {"row_id": n} for n, row in enumerate(chain.from_iterable(map(turns_of, rows)))]
        read = read_records(rows, tokenizer, teachers, args)
        report.refuse_records(source, [_numbered(r) for r in read if r.error is not None])
        if given is not None:
            report.refuse_records(source, list(_without_text([r.row for r in read if r.error is None], given)))
        counts.append((source, len(rows)))
        readings += read
        if rows and len(read) == len(rows) and not any(r.error for r in read):
            to_columns(rows)  # whether they agree on the types of their columns
    report.add("records", ", ".join(f"{count} of {source}" for source, count in counts))
    if readings:
        _prompt_lengths(readings, args, report)
    if data_args.probes:
        _probes(data_args.probes, tokenizer, args, report)
    return counts[0][1]


def _without_text(rows: list[Record], given: GivenTexts) -> Iterator[tuple[str, str]]:
    """(name, fault) of the records that have no answer, or none in the store, where they need one."""
    for row in rows:
        try:
            given.check_rows([row])
        except ValueError as error:
            yield record_name(row, row["row_id"]), str(error).removeprefix(f"{record_name(row)}: ")


def _prompt_lengths(readings: list[Any], args: Any, report: Report) -> None:
    by_teacher = max(readings, key=lambda reading: reading.teacher)
    by_student = max(reading.student for reading in readings)
    limit, wanted = args.max_teacher_prompt_length, round_up(by_teacher.teacher)
    advice = f"set max_teacher_prompt_length: {wanted}" if by_teacher.teacher > limit else f"{wanted} is enough"
    report.add(
        "prompts",
        f"the longest is the teacher's of {record_name(by_teacher.row)}, {by_teacher.teacher} tokens "
        f"(max_teacher_prompt_length={limit}; {advice}); the student's longest has {by_student}",
    )


def _probes(source: str, tokenizer: Any, args: Any, report: Report) -> None:
    probes: list[Record] = list(load_lab_records(source) if source.startswith(LAB_PREFIX) else load_records(source))
    special = SpecialTokens(tokenizer, args.allow_special_tokens)
    if all(problem.doubt for problem in check_probes(probes)):  # what is wrong with the others is known

        def name(probe: Record, number: int) -> str:
            return f"probe of {record_name(probe, number)}"

        def read(probe: Record, number: int) -> None:
            special.check(name(probe, number), probe["question"], probe.get("knowledge"))

        _each(probes, read, report, source, name)
    report.add("probes", f"{len(probes)} of {source}")


def _tokenizer_of(model_args: Any, args: Any) -> Any:
    path = resolve_model(model_args.model_name_or_path)
    options = {"revision": model_args.model_revision, "trust_remote_code": args.trust_remote_code}
    return AutoTokenizer.from_pretrained(path, **options)


def check_texts(data_args: Any, args: Any, model_args: Any, report: Report) -> int:
    """Records of `lupi sft` and `lupi wmtp`, whose texts TRL cuts at `max_length`; returns how many are trained on."""
    tokenizer = _tokenizer_of(model_args, args)
    special = SpecialTokens(tokenizer, data_args.allow_special_tokens)
    kwargs: Any = data_args.chat_template_kwargs or {}
    of_answers = hasattr(data_args, "base_dataset_name")  # `lupi sft` reads no `text`

    def read(record: Record, number: int) -> int:
        if not of_answers and isinstance(record.get("text"), str) and record["text"].strip():
            special.check(record_name(record, number), record["text"])
            return len(tokenizer(record["text"])["input_ids"])
        row = sft_row(record, number, data_args.completion_column)
        special.check(record_name(record, number), *(m["content"] for m in row["prompt"] + row["completion"]))
        return len(tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False, **kwargs))

    count = 0
    names = (data_args.dataset_name, getattr(data_args, "base_dataset_name", None), data_args.eval_dataset_name)
    for at, source in enumerate(names):
        if source is None:
            continue
        lengths = _each(load_records(source), read, report, source)
        count = len(lengths) if at == 0 else count
        cut = sum(length > args.max_length for length in lengths) if args.max_length else 0
        said = f"{len(lengths)} of {source}, the longest has {max(lengths, default=0)} tokens"
        if cut:
            said += f"; {cut} are cut at max_length={args.max_length}: {round_up(max(lengths))} keeps all of them"
        report.add("records", said)
    return count


def check_questions(qa: Any, args: Any, model_args: Any, report: Report) -> int:
    """Questions of `lupi kd`, of which those that are longer than `max_length` are left out."""
    tokenizer, count = _tokenizer_of(model_args, args), 0
    evaluation = evaluation_source(qa.dataset_name, qa.eval_dataset_name)
    special = SpecialTokens(tokenizer, qa.allow_special_tokens)
    parts = (
        (qa.dataset_name, qa.dataset_train_split, qa.max_samples),
        (evaluation, qa.dataset_eval_split, qa.max_eval_samples),
    )

    def read(record: Record, number: int) -> Record | None:
        checked = check_qa_record(record, number)
        if checked is not None:
            special.check(record_name(checked), *(checked[key] for key in ("context", "question", "answer")))
        return checked

    for at, (source, split, most) in enumerate(parts):
        if source is None:
            continue
        found = [record for record in _each(raw_questions(source, split), read, report, source) if record]
        if not found:
            report.refuse(f"{source}: no question with an answer in it")
            continue
        try:
            done = tokenize_qa(
                found, tokenizer, seq_len=args.max_length, template=qa.qa_template, allow_special_tokens=True
            )
        except ValueError as error:
            report.refuse(f"{source}: {error}")
            continue
        said = f"{len(found)} of {source}, the longest has {done.longest} tokens"
        if done.dropped:
            some = ", ".join(done.dropped[:5]) + (", ..." if len(done.dropped) > 5 else "")
            said += (
                f"; {len(done.dropped)} are left out, longer than max_length={args.max_length} ({some}): "
                f"{round_up(done.longest)} keeps all of them"
            )
        report.add("records", said)
        count = min(len(done.dataset), most or len(done.dataset)) if at == 0 else count
    return count
