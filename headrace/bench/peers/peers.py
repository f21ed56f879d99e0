"""Engines that can be compared on this machine. scripts/peers installs them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from shared.errors import ConfigError
from shared.settings import QuantizationName, user_folder


@dataclass(frozen=True)
class Peer:
    """Engine to compare with: the module that runs it, its last arguments, and the Python interpreter for it."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    python: str = sys.executable


OTHER_FORMATS = {f"headrace-{name}": name for name in get_args(QuantizationName)}  # of Headrace's own engine
PEERS = ("hf", "vllm", "llamacpp", *OTHER_FORMATS)


def peer_folder(name: str) -> Path:
    return user_folder("XDG_CACHE_HOME", ".cache") / "peers" / name


def find_peers(against: str) -> tuple[list[Peer], list[str]]:
    """Return the installed peers of a list like "hf,vllm", and the names of those that are not installed.

    "none" stands for the empty list. Raises ConfigError for an unknown name.
    """
    names = [] if against == "none" else against.split(",")
    if unknown := [name for name in names if name not in PEERS]:
        raise ConfigError(f"--against must be none or a list of {', '.join(PEERS)}, got {unknown[0]}")
    included = {"hf", *OTHER_FORMATS}
    missing = [name for name in names if name not in included and not (peer_folder(name) / "ready").is_file()]
    return [_peer(name) for name in names if name not in missing], missing


def _peer(name: str) -> Peer:
    if name in OTHER_FORMATS:
        return Peer(name, "headrace.bench.engine.peer_headrace", (OTHER_FORMATS[name],))
    own = name == "vllm"  # the others run in, or are started from, this environment
    python = str(peer_folder(name) / "bin/python") if own else sys.executable
    return Peer(name, f"headrace.bench.peers.peer_{name}", python=python)
