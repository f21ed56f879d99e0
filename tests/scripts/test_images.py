"""Sizes and SBOMs of scripts/images."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

SCRIPT = Path(__file__).parents[2] / "scripts" / "images.py"


@pytest.fixture(scope="module")
def images() -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        module = type(sys)("images")
        patch.setitem(sys.modules, "images", module)  # dataclasses look their module up
        return SimpleNamespace(**runpy.run_path(str(SCRIPT), run_name="images"))


def test_each_image_has_its_own_packages(images: SimpleNamespace) -> None:
    found = {image: images.packages(extras) for image, extras in images.images().items()}
    assert set(found) == {"api", "tasks", "worker"}
    assert "torch" in found["worker"]
    assert "torch" not in found["api"]
    assert "fastapi" not in found["worker"]
    assert "celery" in found["tasks"]
    assert found["api"]["asyncpg"].version  # pinned, whether or not it is installed here


def test_the_sbom_fits_its_schema_and_is_reproducible(images: SimpleNamespace) -> None:
    text = images.bill("api", images.images()["api"])
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert text == images.bill("api", images.images()["api"])
    assert '"pkg:pypi/fastapi@' in text
