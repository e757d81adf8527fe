"""A saved student to the Hub: all of its files in one commit, or none of them."""

import hashlib
import json
import re
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from ..data.credentials import known_secrets
from .model_card import is_hub_name, with_base_model
from .student_files import read_json, student_files


ADAPTER_CONFIG = "adapter_config.json"
COMMIT_MESSAGE = "Upload student"
# what `from_pretrained` would take for the student if an earlier one left it in the repository
_LOADABLE = re.compile(r"(adapter_)?config\.json|[^/]+\.(safetensors|bin)(\.index\.json)?")


class HubError(OSError):
    """A push that did not go through; the message says why, and how it is completed.

    Attributes:
        reason: why, alone.
    """

    def __init__(self, reason: str, what_now: str):
        super().__init__(f"{reason}. {what_now}")
        self.reason = reason


def create_repository(
    repo_id: str, *, private: bool | None = None, revision: str | None = None, token: str | None = None
) -> str:
    """Make sure that a repository, and a branch of it, exist.

    Returns:
        Its full name, `"user/name"`.

    Raises:
        ValueError: it cannot be a repository's name.
        HubError: the Hub refused, or could not be reached.
    """
    check_name(repo_id)
    api = HfApi(token=token, library_name="lupi_trainer")
    with _explained(api, repo_id, "Nothing was sent."):
        return _create(api, repo_id, private, revision)


def check_name(repo_id: str) -> None:
    """Raises ValueError if it cannot be the name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} cannot be the name of a repository: {error}") from error


def _create(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> str:
    if "/" not in repo_id:
        repo_id = f"{api.whoami()['name']}/{repo_id}"
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


def push_command(folder: str | Path, repo_id: str, **options: bool | str | None) -> str:
    """The command that does what [`push_folder`] does with these options, of which `None` is the default.

    The token comes from the environment.
    """
    words = ["lupi", "push", str(folder), "--repo_id", repo_id]
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            words.append(f"--{name}={value}")
    return shlex.join(words)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    base_model: str | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    commit_message: str = COMMIT_MESSAGE,
    token: str | None = None,
) -> str:
    """Send a saved student to the Hub, as one commit.

    A push that was interrupted is completed by the same call again: what arrived is not sent a second time, and a
    repository that holds the very same files is left as it is.

    Args:
        folder: where the trainer saved the student. It is read, never changed.
        repo_id: `"user/name"`, or `"name"` in the namespace of the token's owner. Created if it is not there.
        private: whether a repository that is created is private (`None`: as the Hub does for its owner).
        base_model: Hub name that an adapter's config and card get as its base; needed where it was trained on a local
            folder.
        overwrite: replace a student that is in the repository already (the old one stays in its history). Without
            it, a repository with other files under the student's names is refused.
        revision: branch to commit to. Created if it is not there.
        commit_message: first line of the commit.
        token: the Hub token; by default `HF_TOKEN`, or the one of `hf auth login`.

    Returns:
        The URL of the repository.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder holds no complete student
            (see [`~lupi_trainer.publishing.student_files.student_files`]), or the repository's name cannot be one;
            nothing was sent.
        HubError: the Hub refused, or could not be reached; the message says how the push is completed.
    """
    folder = Path(folder)
    found = student_files(folder)
    files: dict[str, Path | bytes] = dict(found)
    if ADAPTER_CONFIG in found:
        files[ADAPTER_CONFIG] = _adapter_config(folder, found[ADAPTER_CONFIG], base_model)
        if base_model is not None:
            files["README.md"] = with_base_model(found["README.md"], base_model).encode()
    elif base_model is not None:
        raise ValueError(f"{folder} holds a full model: only an adapter has a base model to name")
    check_name(repo_id)
    api = HfApi(token=token, library_name="lupi_trainer")
    command = push_command(
        folder,
        repo_id,
        private=private,
        base_model=base_model,
        overwrite=overwrite or None,
        revision=revision,
        commit_message=commit_message if commit_message != COMMIT_MESSAGE else None,
    )
    again = f"The student is complete in {folder}; the same push again ({command}) completes it."
    with _explained(api, repo_id, again):
        repo_id = _create(api, repo_id, private, revision)
        tree = api.list_repo_tree(repo_id, recursive=True, revision=revision)
        remote = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        adds = [CommitOperationAdd(name, content) for name, content in files.items()]
        changed = {add.path_in_repo for add in adds if not _is_same(remote.get(add.path_in_repo), add)}
        stale = sorted(name for name in remote if name not in files and _LOADABLE.fullmatch(name))
        in_the_way = sorted(changed & remote.keys()) + stale
        if in_the_way and not overwrite:
            raise HubError(
                f"{repo_id} exists, with files of its own in the student's place ({', '.join(in_the_way)}); nothing "
                "was sent",
                "Choose another repo_id, or replace them with --overwrite (its history keeps them).",
            )
        operations: list[CommitOperationAdd | CommitOperationDelete]
        operations = [add for add in adds if add.path_in_repo in changed]
        operations += [CommitOperationDelete(name, is_folder=False) for name in stale]
        if operations:
            api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision)
    return f"{api.endpoint}/{repo_id}"


def _adapter_config(folder: Path, path: Path, base_model: str | None) -> bytes:
    """The adapter's config with the base model that others can load."""
    config = read_json(path)
    base = base_model or config.get("base_model_name_or_path")
    if not base or not is_hub_name(base):
        raise ValueError(
            f"{folder}: the adapter's base model is {base!r}, which nobody else can load: name its Hub repository "
            "with --base_model"
        )
    return json.dumps(config | {"base_model_name_or_path": base}, indent=2, sort_keys=True).encode()


def _is_same(remote: RepoFile | None, add: CommitOperationAdd) -> bool:
    if remote is None:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == add.upload_info.sha256.hex()
    with add.as_file() as file:
        content = file.read()
    return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def _explained(api: HfApi, repo_id: str, what_now: str) -> Generator[None]:
    """Whatever the Hub's client raises, as one line that says what to do."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        raise HubError(_reason(error, api, repo_id), what_now) from error


def _reason(error: BaseException, api: HfApi, repo_id: str) -> str:
    chain, link = [], error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if any(isinstance(e, OfflineModeIsEnabled) for e in chain):
        return "HF_HUB_OFFLINE is set, so nothing can be sent"
    status = next((e.response.status_code for e in chain if isinstance(e, HfHubHTTPError)), None)
    what = " ".join(str(chain[-1] if status is None else chain[0]).split()) or type(chain[-1]).__name__
    for secret in (*known_secrets(), *([api.token] if isinstance(api.token, str) else [])):
        what = what.replace(secret, "***")
    if status == 401:
        if not (api.token or get_token()):
            return "the Hub wants a token: set HF_TOKEN in the environment, or run `hf auth login`"
        return "the Hub refused the token (401): it is not valid, or has expired"
    if status == 403:
        return f"the Hub refused to let this token write to {repo_id} (403)"
    if status == 404:
        return f"the Hub has no such repository or revision for this token (404: {what})"
    if status is not None:
        return f"the Hub answered {status} ({what})"
    return f"the connection to {api.endpoint} failed ({type(chain[-1]).__name__}: {what})"
