"""The choice of a model's module."""

from __future__ import annotations

import sys

import pytest

from shared.errors import ConfigError
from shared.repository.spec import ModelSpec
from workers.predictors.select import module_for


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"backend of model x must be one of onnxruntime, .*, got 'os'"):
        module_for(ModelSpec(name="x", backend="os"))


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "workers.predictors.frameworks.onnxruntime", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"model x needs the package onnxruntime: pip install 'headrace\[onnx\]'"):
        module_for(ModelSpec(name="x", backend="onnxruntime"))
