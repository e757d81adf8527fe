"""Where a run reports to: what each reporter needs is known before anything is loaded, and its files go to the run's.

Nothing heavy is imported here; the tests hold the names to those of transformers.
"""

import difflib
import importlib.util
import netrc
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reporter:
    """What a reporter needs.

    Attributes:
        modules: groups of modules, of each of which one must be there.
        package: what pip installs.
        folders: variable -> folder below `output_dir` that it is to name.
        keys: variables, of which one (or one of `files` in the home folder) says who reports; none where that is not
            asked, or an offline log is written without.
        files: see `keys`.
        offline: a variable and the value with which it logs to its folder alone, where there is no key.
        sync: the command that sends such a log later.
    """

    modules: tuple[tuple[str, ...], ...] = ()
    package: str = ""
    folders: tuple[tuple[str, str], ...] = ()
    keys: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    offline: tuple[str, str] | None = None
    sync: str = ""


REPORTERS = {
    "azure_ml": Reporter((("azureml.core",),), "azureml-core"),
    "clearml": Reporter((("clearml",),), "clearml", keys=("CLEARML_API_ACCESS_KEY",), files=("clearml.conf",)),
    "codecarbon": Reporter((("codecarbon",),), "codecarbon"),  # which is given `output_dir`
    "comet_ml": Reporter(
        (("comet_ml",),),
        "comet_ml",
        (("COMET_OFFLINE_DIRECTORY", "comet"),),
        keys=("COMET_API_KEY", "COMET_CONFIG"),
        files=(".comet.config",),
    ),
    "dagshub": Reporter((("dagshub",), ("mlflow",)), "dagshub mlflow"),
    "dvclive": Reporter((("dvclive",),), "dvclive"),  # see `place_dvclive`
    "flyte": Reporter((("flytekit",),), "flytekit"),
    "kubeflow": Reporter(keys=("KUBEFLOW_TRAINER_SERVER_URL",)),
    "mlflow": Reporter((("mlflow",),), "mlflow", (("MLFLOW_TRACKING_URI", "mlruns"),)),
    "neptune": Reporter((("neptune",),), "neptune", keys=("NEPTUNE_API_TOKEN",)),
    "swanlab": Reporter(
        (("swanlab",),),
        "swanlab",
        (("SWANLAB_LOG_DIR", "swanlog"),),
        ("SWANLAB_API_KEY",),
        (".swanlab/.netrc",),
        ("SWANLAB_MODE", "offline"),
        "swanlab sync {folder}/run-*",
    ),
    "tensorboard": Reporter(
        (("tensorboard", "tensorboardX"),), "tensorboard", (("TENSORBOARD_LOGGING_DIR", "tensorboard"),)
    ),
    "trackio": Reporter((("trackio",),), "trackio", (("TRACKIO_DIR", "trackio"),)),
    "wandb": Reporter(
        (("wandb",),),
        "wandb",
        (("WANDB_DIR", ""),),
        ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"),
        (),
        ("WANDB_MODE", "offline"),
        "wandb sync {folder}/wandb/offline-run-*",
    ),
}
FOLDERS = {"wandb", "dvclive", *(below for r in REPORTERS.values() for _, below in r.folders if below)}
_placed: dict[str, str] = {}  # variables that were set here, for an earlier run of this process


def is_installed(module: str) -> bool:
    """Whether a module could be imported; of its packages alone are those before its last name imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # a part of the name is not there, or was replaced by an object
        return False


def chosen(report_to: Any) -> list[str]:
    """The reporters that a recipe's `report_to` names; of "all", those that are installed."""
    names = [report_to] if isinstance(report_to, str) else list(report_to or ())
    if names == ["all"]:
        return [name for name, reporter in REPORTERS.items() if reporter.modules and not _missing(reporter)]
    return [name for name in names if names != ["none"]]


def _missing(reporter: Reporter) -> list[str]:
    return [" or ".join(group) for group in reporter.modules if not any(map(is_installed, group))]


def _has_key(name: str, reporter: Reporter, env: Mapping[str, str]) -> bool:
    if not reporter.keys or any(env.get(key) for key in reporter.keys):
        return True
    if any((Path.home() / file).is_file() for file in reporter.files):
        return True
    return name == "wandb" and _wandb_login(env)


def _wandb_login(env: Mapping[str, str]) -> bool:
    """Whether `wandb login` has left a key for the server of the run."""
    host = env.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0].split(":")[0]
    path = Path(env["NETRC"]) if env.get("NETRC") else Path.home() / ".netrc"
    try:
        return path.is_file() and netrc.netrc(path).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError):  # which is no login either
        return False


def faults(report_to: Any, env: Mapping[str, str] = os.environ) -> Iterator[str]:
    """What keeps a run from reporting where its recipe says, one line each."""
    for name in chosen(report_to):
        if name not in REPORTERS:
            near = difflib.get_close_matches(str(name), [*REPORTERS, "all", "none"], 1)
            hint = f"did you mean {near[0]!r}? There" if near else "there"
            yield f"report_to: no reporter {name!r}; {hint} are {', '.join(REPORTERS)}, all and none"
            continue
        reporter = REPORTERS[name]
        if missing := _missing(reporter):
            yield f"report_to: {name} needs {' and '.join(missing)}: pip install {reporter.package}"
        elif not _has_key(name, reporter, env) and reporter.offline is None:
            where = f", or ~/{reporter.files[0]}" if reporter.files else ""
            yield f"report_to: {name} needs {reporter.keys[0]} in the environment{where}"


def place(report_to: Any, output_dir: str | None) -> None:
    """Send the files of reporters below a run's folder, where their own variables do not say otherwise.

    Before they are imported, since some read their variables then.
    """
    folder = Path(output_dir or "trainer_output").absolute()
    for name in filter(REPORTERS.__contains__, chosen(report_to)):
        for variable, below in REPORTERS[name].folders:
            if not os.environ.get(variable) or os.environ[variable] == _placed.get(variable):
                here = folder / below
                os.environ[variable] = _placed[variable] = here.as_uri() if variable.endswith("_URI") else str(here)


def go_offline(report_to: Any) -> Iterator[str]:
    """Have reporters that know no key log to their folders alone; yields a line each, of how that is sent later."""
    for name in filter(REPORTERS.__contains__, chosen(report_to)):
        reporter = REPORTERS[name]
        if reporter.offline is None or os.environ.get(reporter.offline[0]) or _has_key(name, reporter, os.environ):
            continue
        variable, value = reporter.offline
        os.environ[variable] = value
        folder = os.environ[reporter.folders[0][0]]
        yield (
            f"{name}: no {reporter.keys[0]}, so the run is logged offline; to send it later: "
            f"{reporter.sync.format(folder=folder)}"
        )


def summary(report_to: Any) -> str:
    """Where a run reports to, in words."""
    words = []
    for name in chosen(report_to):
        reporter = REPORTERS.get(name, Reporter())
        offline = "" if _has_key(name, reporter, os.environ) else f" (no {reporter.keys[0]}: offline)"
        words.append(name + offline)
    return ", ".join(words) or "nowhere: report_to is none"


def prepare(report_to: Any, output_dir: str | None) -> None:
    """Have a run's reporters ready before its weights are loaded.

    Raises:
        ValueError: a package or a key is missing; each reporter is named.
    """
    if found := list(faults(report_to)):
        raise ValueError("; ".join(found))
    place(report_to, output_dir)
    lines = list(go_offline(report_to))
    if "trackio" in chosen(report_to) and os.environ.get("TRACKIO_DIR") == _placed.get("TRACKIO_DIR"):
        lines.append(f"trackio: TRACKIO_DIR={os.environ['TRACKIO_DIR']} trackio show")
    for line in lines:
        if os.environ.get("RANK", "0") == "0":
            print(line, file=sys.stderr, flush=True)


def place_dvclive(callbacks: Iterable[Any], output_dir: str) -> None:
    """Give transformers' callback for DVCLive, which has no variable for it, a log below `output_dir`."""
    for callback in callbacks:
        if type(callback).__name__ == "DVCLiveCallback" and callback.live is None:
            callback.live = sys.modules["dvclive"].Live(dir=str(Path(output_dir) / "dvclive"))
