"""Free ports of this machine."""

from __future__ import annotations

import socket


def probe(host: str, port: int) -> int:
    """`port` if it can be listened on now, or a free one for 0. Raises OSError."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        found: int = listener.getsockname()[1]
        return found
