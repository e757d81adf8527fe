"""What a run needs to know before a model is loaded: names as paths, who teaches, and what both models have in common.

The constructor of [`LUPISKDTrainer`] resolves names here, once; everything below it takes a path or a model.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from accelerate.utils import is_peft_model
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompt_ends import check_prompt_ends
from ..data.prompts import TeacherPrompt, Words, load_few_shot_examples, teacher_words
from ..lab import resolve_model
from ..models.adapters import check_base_untouched
from ..models.backbone import context_length
from ..models.head_check import refuse_rescaled
from ..models.loading import key_named, repository_options
from ..models.vocabulary import check_tokenizer, check_vocabularies
from ..speculative.runners.support import config_can_draft, require_config_support
from ..teachers.loaded import load_teacher_config, refuse_shared
from ..teachers.vllm import TeacherServer
from .remote import connect_teacher
from .store import TeacherStore
from .text_keys import check_store_settings
from .texts import open_store


Model = TypeVar("Model")


class TeacherKind(Enum):
    """Where the teacher of a run is."""

    LOCAL = "local"  # loaded by this process
    REMOTE = "remote"  # at `teacher_model_server_url`
    SELF = "self"  # the student itself, its adapter switched off
    NAMED = "named"  # there is none for all records: each says which of `teachers` is its own
    STORE = "store"  # nowhere: what it said is in `teacher_store`


def to_source(model: Model | str, key: str) -> Model | str:
    """A model's *source*: its path, or its name on the Hub, if it was given by name; else the model as it was given.

    Raises:
        ValueError: a `lab:` name that the lab does not have, or a folder that is not there; the message has the key.
    """
    if not isinstance(model, str):
        return model
    with key_named(key):
        return resolve_model(model)


def name_of(student: str | PreTrainedModel) -> str:
    """The name that a student's tokenizer is loaded by, and its run is called after."""
    return student if isinstance(student, str) else student.config.name_or_path or "student"


def teacher_kind(
    teacher: str | PreTrainedModel | None, args: Any, student: str | PreTrainedModel, peft_config: Any
) -> TeacherKind:
    """Where the teacher of a run is.

    Args:
        teacher: its source, or `None`.
        args: [`LUPISKDConfig`].
        student: its source.
        peft_config: of the adapter that the student is to get, or `None`.

    Raises:
        ValueError: no teacher, a loaded one beside a remote one or a store, one that shares weights with the student,
            a setting that needs a teacher beside a store, or a self-taught student with `teacher_offload` or an
            adapter without which it is not the original model.
    """
    if args.teacher_store is not None:
        if teacher is not None and not isinstance(teacher, str):
            raise ValueError("teacher_store is set and a teacher was passed: there can be one teacher only")
        check_store_settings(args)
        return TeacherKind.STORE
    if args.teacher_model_server_url is not None:
        if teacher is not None and not isinstance(teacher, str):
            raise ValueError("teacher_model_server_url is set and a teacher was passed: there can be one teacher only")
        return TeacherKind.REMOTE
    if teacher is not None:
        refuse_shared(student, teacher, "teacher")
        return TeacherKind.LOCAL
    if peft_config is None and (isinstance(student, str) or not is_peft_model(student)):
        if args.teachers:
            return TeacherKind.NAMED
        raise ValueError(
            "no teacher: pass `teacher_model`, set `teacher_model_name_or_path` or `teacher_model_server_url`, or "
            "give the student a LoRA adapter (`peft_config`, `use_peft`), so that it can be its own teacher "
            "with the adapter switched off"
        )
    if args.teacher_offload:
        raise ValueError("teacher_offload: a self-taught student has no other model to offload")
    check_base_untouched(student, peft_config)
    return TeacherKind.SELF


def _student_options(student: str | PreTrainedModel, args: Any) -> dict[str, Any]:
    """Of a student's configuration and tokenizer; one that is loaded already has no revision."""
    return repository_options(args) if isinstance(student, str) else {"trust_remote_code": args.trust_remote_code}


def student_tokenizer(
    student: str | PreTrainedModel, args: Any, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """The given tokenizer, else the one beside the student's weights; checked.

    Raises:
        TypeError: it is no text tokenizer.
        ValueError: it cannot write the prompts.
    """
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(name_of(student), **_student_options(student, args))
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"`processing_class` must be a text tokenizer, got {type(tokenizer).__name__}")
    check_tokenizer(tokenizer)
    return tokenizer


def refuse_router_loss(config: Any, args: Any) -> None:
    """Raise ValueError for a mixture-of-experts student whose load-balancing loss is asked for: it is not computed."""
    text = config.get_text_config()
    asked = (args.model_init_kwargs or {}).get("output_router_logits", getattr(text, "output_router_logits", False))
    if asked and getattr(text, "router_aux_loss_coef", 0.0):
        raise ValueError(
            "the load-balancing loss of this model is not supported: set `output_router_logits` to false, in its "
            "configuration or in `model_init_kwargs`"
        )


@dataclass(frozen=True)
class ModelPair:
    """What is known of student and teacher before weights are loaded.

    Attributes:
        vocab_size: token ids that both have.
        context_lengths: positions that the student and the teacher have (`None`: no limit).
        server: the remote teacher, connected; `None` where the teacher is another.
        teacher_tokenizer: the teacher's, if it is known.
        store: the teacher store; `None` where there is a teacher.
    """

    vocab_size: int
    context_lengths: tuple[int | None, int | None]
    server: TeacherServer | None
    teacher_tokenizer: PreTrainedTokenizerBase | None
    store: TeacherStore | None = None


def compare_models(
    student: str | PreTrainedModel,
    teacher: str | PreTrainedModel | None,
    kind: TeacherKind,
    args: Any,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
) -> ModelPair:
    """Read both models' configurations, and connect a remote teacher, or open a store.

    Args:
        student, teacher: their sources; no teacher where the student teaches itself, or a server says what it has.
        kind: where the teacher is.
        args: [`LUPISKDConfig`].
        tokenizer: the student's.
        teacher_tokenizer: the teacher's, if it was given.

    Raises:
        ValueError: vocabularies that do not match, a model that no rollout can be made with, or a store that was
            written otherwise.
        TeacherServerError: the server does not answer, or serves something else.
    """
    if isinstance(student, str):
        student_config = AutoConfig.from_pretrained(student, **_student_options(student, args))
    else:
        student_config = student.config
    refuse_router_loss(student_config, args)
    refuse_rescaled(student_config, "student")
    teacher_config, store = student_config, None
    if kind is TeacherKind.STORE:
        store = open_store(args)
        teacher_config, teacher_tokenizer = store.config, store.tokenizer
    elif teacher is not None:
        teacher_config, teacher_tokenizer = load_teacher_config(teacher, args, teacher_tokenizer)
    vocab_size, server = check_vocabularies(student_config, teacher_config, tokenizer, teacher_tokenizer), None
    drafts = args.rollout_policy == "speculative" or (kind is TeacherKind.REMOTE and args.rollout_policy != "gold")
    require_config_support(student_config, "student", drafts)
    if kind in (TeacherKind.LOCAL, TeacherKind.SELF):
        require_config_support(teacher_config, "teacher", drafts)
    unable = {c.model_type for c in (student_config, teacher_config) if not drafts and not config_can_draft(c)}
    if unable and (args.record_rollouts or args.log_rollout_blocks):
        raise ValueError(
            f"record_rollouts and log_rollout_blocks: of {' and '.join(sorted(unable))} models, which write by "
            "transformers' generate, no blocks can be recorded; leave both out"
        )
    if kind is TeacherKind.REMOTE:
        assert teacher is None or isinstance(teacher, str)  # or `teacher_kind` had raised
        # what a teacher without a name has beyond the tokenizer is not known
        known = min(len(tokenizer), vocab_size) if teacher is None else vocab_size
        server = connect_teacher(teacher, args, tokenizer, known)
        vocab_size, teacher_config = server.vocab_size, server.config
    lengths = context_length(student_config), context_length(teacher_config)
    return ModelPair(vocab_size, lengths, server, teacher_tokenizer, store)


def teacher_prompt_of(
    args: Any, tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase | None
) -> TeacherPrompt:
    """What a run's teacher reads around the knowledge, and in which words: its own template's where that is known.

    Args:
        args: [`LUPISKDConfig`].
        tokenizer: the student's.
        teacher_tokenizer: the teacher's; `None`: not known.

    Raises:
        ValueError: examples or a template that cannot be read, or prompts of student and teacher that end so that
            the teacher would teach another first token; both ends are shown.
    """
    kwargs: Any = args.chat_template_kwargs or {}  # parsed by now
    student = Words(tokenizer, kwargs)
    teacher = teacher_words(student, teacher_tokenizer, args.teacher_chat_template, args.teacher_chat_template_kwargs)
    examples = load_few_shot_examples(args.few_shot_examples)
    prompt = TeacherPrompt(args.teacher_system_prompt, examples, args.knowledge_template, teacher)
    if not args.allow_different_prompt_ends:
        check_prompt_ends(student, prompt)
    return prompt
