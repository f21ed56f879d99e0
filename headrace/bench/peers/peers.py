"""Engines that can be compared on this machine. scripts/peers installs them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigError
from shared.settings import user_folder


@dataclass(frozen=True)
class Peer:
    """Engine to compare with: the module that runs it, and the Python interpreter for it."""

    name: str
    module: str
    python: str = sys.executable


PEERS = ("hf", "vllm", "llamacpp")


def peer_folder(name: str) -> Path:
    return user_folder("XDG_CACHE_HOME", ".cache") / "peers" / name


def find_peers(against: str) -> tuple[list[Peer], list[str]]:
    """Return the installed peers of a list like "hf,vllm", and the names of those that are not installed.

    "none" stands for the empty list. Raises ConfigError for an unknown name.
    """
    names = [] if against == "none" else against.split(",")
    if unknown := [name for name in names if name not in PEERS]:
        raise ConfigError(f"--against must be none or a list of {', '.join(PEERS)}, got {unknown[0]}")
    missing = [name for name in names if name != "hf" and not (peer_folder(name) / "ready").is_file()]
    return [_peer(name) for name in names if name not in missing], missing


def _peer(name: str) -> Peer:
    own = name == "vllm"  # the others run in, or are started from, this environment
    return Peer(
        name, f"headrace.bench.peers.peer_{name}", str(peer_folder(name) / "bin/python") if own else sys.executable
    )
