"""The wheel carries every file that the packages need, and its licences."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from shared.version import VERSION

ROOT = Path(__file__).parents[2]
PACKAGES = ("headrace", "producer_api", "shared", "workers")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    source = tmp_path_factory.mktemp("source")
    for name in tracked():
        if name.split("/")[0] in {*PACKAGES, "pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY.md"}:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(target)], cwd=source, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return zipfile.ZipFile(next(target.glob("*.whl")))


def test_the_wheel_has_every_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == {name for name in tracked() if name.split("/")[0] in PACKAGES}


def test_the_wheel_has_the_version_of_the_code(wheel: zipfile.ZipFile) -> None:
    assert Path(wheel.filename or "").name == f"headrace-{VERSION}-py3-none-any.whl"


def test_the_wheel_has_the_licences(wheel: zipfile.ZipFile) -> None:
    licences = {name.rpartition("/")[2] for name in wheel.namelist() if "/licenses/" in name}
    assert licences == {"LICENSE", "THIRD_PARTY.md"}


def test_the_dockerfile_copies_what_the_build_needs() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    for name in (*PACKAGES, "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "THIRD_PARTY.md"):
        assert name in dockerfile
        assert f"!{name}" in ignore
