"""Which other engines can be compared with on this machine; scripts/peers sets them up."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigError
from shared.settings import user_folder


@dataclass(frozen=True)
class Peer:
    """A module that runs it, and the interpreter for that."""

    name: str
    module: str
    python: str = sys.executable


PEERS = ("hf", "vllm", "llamacpp")


def peer_folder(name: str) -> Path:
    return user_folder("XDG_CACHE_HOME", ".cache") / "peers" / name


def find_peers(against: str) -> tuple[list[Peer], list[str]]:
    """The peers of a list like "hf,vllm" ("none" is none) that are installed, and the names of those that are not.

    Raises ConfigError for an unknown one.
    """
    names = [] if against == "none" else against.split(",")
    if unknown := [name for name in names if name not in PEERS]:
        raise ConfigError(f"--against is of {', '.join(PEERS)}, or none, not {unknown[0]}")
    missing = [name for name in names if name != "hf" and not (peer_folder(name) / "ready").is_file()]
    return [_peer(name) for name in names if name not in missing], missing


def _peer(name: str) -> Peer:
    own = name == "vllm"  # the others run in, or from, our environment
    return Peer(
        name, f"headrace.bench.peers.peer_{name}", str(peer_folder(name) / "bin/python") if own else sys.executable
    )
