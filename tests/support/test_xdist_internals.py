"""Tests of a group run in one process."""

from __future__ import annotations

import pytest

from tests.support.xdist_internals import join_group


def test_the_group_is_where_xdist_looks_for_it(request: pytest.FixtureRequest) -> None:
    """It takes what follows the last @ if no ] follows."""
    item = pytest.Function.from_parent(request.node.parent, name="test_a", callobj=lambda: None)
    join_group(item, "tests/test_a.py:False")
    assert item.nodeid.rpartition("@")[2] == "tests/test_a.py:False"
