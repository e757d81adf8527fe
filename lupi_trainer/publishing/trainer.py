"""A mix-in for trainers: a saved student is complete, has a model card, holds no secret, and can be pushed."""

import logging
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress, hf_api

from ..data.credentials import refuse_secrets
from ..data.files import write_atomically
from ..models.generation import make_savable
from ..training.private import TrainerHooks
from .model_card import ADAPTER_SETTINGS, SELF_TAUGHT, SETTINGS, ModelFacts, is_hub_name, render_card
from .papers import Paper
from .push import create_repository, push_folder
from .student_files import student_files


logger = logging.getLogger(__name__)

IN_FLIGHT = "_push-"  # folders of files that are being sent


class Published(TrainerHooks):
    """For a [`~transformers.Trainer`]: every saved student has a card and a generation config, and no secret in it.

    Put it first among the bases. A subclass that saves more (heads, a value head) does so in its own `save_student`,
    and it is pushed with the rest. `dataset_name` names the data on the card, `_papers` are those that it
    cites.
    """

    args: Any
    model: Any
    train_dataset: Any
    hub_model_id: Any
    dataset_name: str | None = None
    stored_teacher: Any = None
    """What is known of a teacher that is not there: a configuration with its `name_or_path`."""
    _papers: tuple[Paper, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any):
        if (config := kwargs.get("args")) is not None:
            refuse_secrets(config)
        make_savable(kwargs.get("model", args[0] if args else None))  # one given as an object
        super().__init__(*args, **kwargs)
        make_savable(self.model)  # one given by name

    # Saving

    def save_student(self, output_dir: str | None, state_dict: dict[str, Any] | None) -> None:
        make_savable(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))  # if it was changed since
        # the parent pickles its arguments beside the weights
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super().save_student(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        if self.args.should_save:
            folder = output_dir or self.args.output_dir
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            if is_peft_model(model) and (generation_config := model.get_base_model().generation_config) is not None:
                generation_config.save_pretrained(folder)  # which adapters are saved without
            self._write_card(folder)

    # with the parameters of TRL's trainers, not of transformers' own
    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:  # ty: ignore[incompatible-method-override]
        """Write the card (`README.md`) into `output_dir`; see [`~lupi_trainer.publishing.model_card.render_card`]."""
        self.dataset_name = dataset_name or self.dataset_name
        if self.is_world_process_zero():
            os.makedirs(self.args.output_dir, exist_ok=True)
            self._write_card(self.args.output_dir, model_name, [tags] if isinstance(tags, str) else tags)

    def _write_card(self, folder: str, name: str | None = None, tags: list[str] | None = None) -> None:
        card = render_card(self._facts(name, tags or []))
        write_atomically(Path(folder) / "README.md", card)

    def _facts(self, name: str | None, tags: list[str]) -> ModelFacts:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        settings = {key: getattr(self.args, key) for key in SETTINGS if getattr(self.args, key, None) is not None}
        if is_peft_model(model):
            config = model.active_peft_config
            settings |= {
                key: getattr(config, key) for key in ADAPTER_SETTINGS if getattr(config, key, None) is not None
            }
        return ModelFacts(
            name=name or Path(self.hub_model_id or self.args.output_dir).name,
            repo_id=self.hub_model_id,
            base_model=getattr(model.config, "name_or_path", None) or None,
            teacher=self._teacher_name(),
            other_teachers=list(getattr(self, "other_teachers", ())),
            dataset=self.dataset_name,
            num_records=len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None,
            method=self.method_name,
            papers=self._papers,
            settings={key: getattr(value, "value", value) for key, value in settings.items()},
            steps=self.state.global_step,
            log_history=self.state.log_history,
            is_adapter=is_peft_model(model),
            tags=[*self.model_tags, *tags],
        )

    def _teacher_name(self) -> str | None:
        if getattr(self, "_is_self_taught", False):
            return SELF_TAUGHT
        config = getattr(getattr(self, "teacher_model", None), "config", None) or self.stored_teacher
        return getattr(config, "name_or_path", None) or getattr(self.args, "teacher_model_name_or_path", None)

    # Pushing

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make sure of the repository before anything is trained for it.

        Raises:
            ValueError: `hub_strategy` would send pickles, or the student would be an adapter on a local folder.
            HubError: the Hub refused, or could not be reached.
        """
        args = self.args
        if args.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(
                f"hub_strategy={args.hub_strategy.value!r} would send the optimizer's state, which is pickled; "
                "use 'every_save' or 'end'"
            )
        if is_peft_model(self.model):
            base = self.model.active_peft_config.base_model_name_or_path
            if not base or not is_hub_name(base):
                raise ValueError(
                    f"push_to_hub: the adapter's base model is {base!r}, which nobody else can load. Train without "
                    "push_to_hub, then: lupi push RUN --repo_id NAME --base_model HUB_NAME"
                )
        if self.is_world_process_zero():
            name = args.hub_model_id or Path(args.output_dir).absolute().name
            private = args.hub_private_repo if private is None else private
            self.hub_model_id = create_repository(
                name, private=private, revision=args.hub_revision, token=token or args.hub_token
            )
            self.push_in_progress = None
            for left in Path(args.output_dir).glob(f"{IN_FLIGHT}*"):  # of a run that was killed while it pushed
                shutil.rmtree(left)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ):
        """Save the student to `output_dir` and send all of it to the Hub in one commit.

        A student that is in the repository is replaced (its history keeps it).

        Args:
            commit_message: first line of the commit.
            blocking: wait for the end; otherwise a future is returned.
            token: in place of `args.hub_token`.
            revision: branch, in place of `args.hub_revision`.
            private: whether a repository that is created is private, in place of `args.hub_private_repo`.
            **card: `model_name`, `dataset_name`, `tags` of the card.

        Returns:
            The URL of the repository (or its future) on the main process, `None` on others.

        Raises:
            HubError: the Hub refused, or could not be reached. The student is saved, and the message says how the push
                is completed.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.dataset_name = card.get("dataset_name") or self.dataset_name
        self.save_without_push()
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**card)
        self.finish_push()
        options: dict[str, Any] = {
            "overwrite": True,
            "private": self.args.hub_private_repo if private is None else private,
            "revision": revision or self.args.hub_revision,
            "commit_message": commit_message,
            "token": token or self.args.hub_token,
        }
        if not blocking:
            return hf_api().run_as_future(push_folder, self.args.output_dir, self.hub_model_id, **options)
        return push_folder(self.args.output_dir, self.hub_model_id, **options)

    def push_checkpoint(self, folder: str) -> None:
        """Send a checkpoint's student in the background; a failure is logged as a warning, and the run goes on."""
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done() and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        options = {
            "overwrite": True,
            "private": args.hub_private_repo,
            "revision": args.hub_revision,
            "commit_message": f"Training in progress, step {self.state.global_step}",
            "token": args.hub_token,  # read here: saving takes it out of the arguments for a while
        }
        # under names of their own, the files outlive the checkpoint, which a later one may remove while they are sent
        sent = Path(tempfile.mkdtemp(prefix=IN_FLIGHT, dir=args.output_dir))
        with self._warn_if_not_pushed(sent, self.state.global_step):
            for name, path in student_files(folder).items():
                (sent / name).parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path, sent / name)
                except OSError:
                    shutil.copyfile(path, sent / name)
            job = hf_api().run_as_future(self._push_and_remove, sent, self.state.global_step, options)
            self.push_in_progress = PushInProgress([job])  # ty: ignore[invalid-argument-type] # it wants a list

    def _push_and_remove(self, folder: Path, step: int, options: dict[str, Any]) -> None:
        with self._warn_if_not_pushed(folder, step):
            push_folder(folder, self.hub_model_id, **options)
        shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    @contextmanager
    def _warn_if_not_pushed(folder: Path, step: int) -> Generator[None]:
        """An invalid student or a failed push is a warning; the copies made for it are removed."""
        try:
            yield
        except (ValueError, OSError) as error:
            reason = getattr(error, "reason", error)
            logger.warning(f"Step {step} was not pushed ({reason}); the run goes on, and pushes again.")
            shutil.rmtree(folder, ignore_errors=True)
