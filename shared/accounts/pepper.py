"""The pepper: the server's own part in every key's digest, so that the database alone tells no key."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from shared.errors import ConfigError
from shared.settings import Settings

FILE = "key-pepper"
LEAST = 32  # characters


def pepper_of(settings: Settings) -> bytes:
    """That of `key_pepper`, or of a file beside our own database, made when it is first needed.

    Raises ConfigError: it is too short, or readable for others, or missing where others use the database too.
    """
    given = settings.key_pepper.get_secret_value()
    if given:
        if len(given) < LEAST:
            raise ConfigError(f"key_pepper must have at least {LEAST} characters", param="key_pepper")
        return given.encode()
    if settings.database_url is not None:
        raise ConfigError(
            "with database_url, key_pepper must be set, the same in every process: openssl rand -hex 32",
            param="key_pepper",
        )
    return _kept(settings.data_dir / FILE)


def to_be_made(settings: Settings) -> bool:
    """Whether `pepper_of` would make one now."""
    ours = not settings.key_pepper.get_secret_value() and settings.database_url is None
    return ours and not (settings.data_dir / FILE).exists()


def _kept(path: Path) -> bytes:
    try:
        if not path.exists():
            _make(path)
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"others can read {path}: chmod 600 it", param="key_pepper")
        return path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"the pepper {path} cannot be had: {error.strerror}", param="key_pepper") from None


def _make(path: Path) -> None:
    """Whole or not at all; of several processes at once, the first one's stays."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{FILE}-{secrets.token_hex(8)}")
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as stream:
        stream.write(secrets.token_hex(32) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
