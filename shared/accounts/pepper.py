"""The pepper: a secret in every key's digest, so that the database alone does not allow guessing keys."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from shared.errors import ConfigError
from shared.settings import Settings

FILE = "key-pepper"
MIN_CHARS = 32


def pepper_of(settings: Settings) -> bytes:
    """Return `key_pepper`, or the content of a file beside the SQLite database, generated at the first use.

    Raises ConfigError if it is too short, readable by other users, or not set although `database_url` is.
    """
    given = settings.key_pepper.get_secret_value()
    if given:
        if len(given) < MIN_CHARS:
            raise ConfigError(f"key_pepper must have at least {MIN_CHARS} characters", param="key_pepper")
        return given.encode()
    if settings.database_url is not None:
        raise ConfigError(
            "key_pepper must be set with database_url, to the same value in every process: openssl rand -hex 32",
            param="key_pepper",
        )
    return _kept(settings.data_dir / FILE)


def to_be_made(settings: Settings) -> bool:
    """Return whether `pepper_of` would generate a pepper now."""
    ours = not settings.key_pepper.get_secret_value() and settings.database_url is None
    return ours and not (settings.data_dir / FILE).exists()


def _kept(path: Path) -> bytes:
    try:
        if not path.exists():
            _make(path)
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"other users can read {path}: run chmod 600 on it", param="key_pepper")
        return path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"the pepper {path} cannot be read or written: {error.strerror}", param="key_pepper"
        ) from None


def _make(path: Path) -> None:
    """Generate the file atomically; if several processes do so at once, the first one's stays."""
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
