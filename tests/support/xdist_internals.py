"""Groups of pytest-xdist 3.8, which looks for them in ids of tests, and cannot write these with pytest 9.2.

`--dist loadgroup` then distributes each test for itself: https://github.com/pytest-dev/pytest-xdist/issues/1386
"""

from __future__ import annotations

import pytest


def join_group(item: pytest.Item, group: str) -> None:
    """Let the process that runs the other tests of the group also run this one."""
    item._id = type(item.id).parse(f"{item.nodeid}@{group}")
