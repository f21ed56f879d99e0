"""Imports without the garbage collector."""

from __future__ import annotations

import gc

import pytest

from shared.runtime.gc_tuning import importing


def test_imported_objects_are_exempt_from_collection() -> None:
    before = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


def test_a_failed_import_turns_the_collector_on_again() -> None:
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()
