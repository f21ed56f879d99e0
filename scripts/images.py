"""Sizes and software bills of materials (SBOM) of the container images, from the packages installed here.

The extras of each image come from the Dockerfile. A package that is not installed here has its pin, but neither
size nor licence.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shared.version import VERSION

ROOT = Path(__file__).parents[1]
IMAGE = re.compile(r"^FROM packages AS (\w+)-packages$.*?\[([\w,]+)\]", re.DOTALL | re.MULTILINE)


@dataclass
class Package:
    """One package of an image. `size` is in bytes, None if it is not installed here."""

    name: str
    version: str
    size: int | None = None
    licence: str = ""
    needs: set[str] = field(default_factory=set)


def images() -> dict[str, list[str]]:
    """Return the extras of each image."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    return {name: extras.split(",") for name, extras in IMAGE.findall(text)}


def packages(extras: list[str]) -> dict[str, Package]:
    """Return Headrace's dependencies with these extras, and theirs, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = {"headrace": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, Package] = {}
    seen: set[tuple[str, str]] = set()
    todo = [("headrace", extra) for extra in ["", *extras]]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name == "headrace":
            requirements = own[extra or "headrace"]
        else:
            found.setdefault(name, describe(name))
            requirements = distribution(name).requires or [] if found[name].size is not None else []
        for text in requirements:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = canonicalize_name(requirement.name)
                todo += [(needed, each) for each in ("", *requirement.extras)]
                if name in found:
                    found[name].needs.add(needed)
    return dict(sorted(found.items()))


def describe(name: str) -> Package:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return Package(name, pins()[name])
    sizes = (path.stat().st_size for file in found.files or [] if (path := Path(str(file.locate()))).exists())
    return Package(name, found.version, sum(sizes), licence_of(found))


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def licence_of(found: Distribution) -> str:
    """Return the licence that the metadata names: an SPDX expression, a classifier, or the first line of a text."""
    if expression := found.metadata.get("License-Expression"):
        return str(expression)
    classifiers = found.metadata.get_all("Classifier") or []
    named = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License :: ")]
    text = str(found.metadata.get("License") or "").strip()
    return " AND ".join(named) or (text.splitlines()[0] if text else "")


def bill(image: str, extras: list[str]) -> str:
    """Return the SBOM of an image, as CycloneDX JSON. It is reproducible: without time and serial number."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    licences = LicenseFactory()
    bom = Bom()
    root = Component(
        name=f"headrace-{image}",
        bom_ref=f"headrace-{image}",
        version=VERSION,
        type=ComponentType.CONTAINER,
        licenses=[licences.make_from_string(project["license"])],
    )
    bom.metadata.component = root
    found = packages(extras)
    components = {
        name: Component(
            name=name,
            version=each.version,
            purl=PackageURL("pypi", name=name, version=each.version),
            bom_ref=name,
            licenses=[licences.make_from_string(each.licence)] if each.licence else [],
        )
        for name, each in found.items()
    }
    for component in components.values():
        bom.components.add(component)
    for name, each in found.items():
        bom.register_dependency(components[name], [components[needed] for needed in each.needs])
    needed_by_others = {needed for each in found.values() for needed in each.needs}
    bom.register_dependency(root, [components[name] for name in components if name not in needed_by_others])
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["serialNumber"], document["metadata"]["timestamp"]
    return json.dumps(document, indent=2) + "\n"


def table() -> str:
    lines = ["| image | packages | MiB | largest |", "| --- | --- | --- | --- |"]
    for image, extras in images().items():
        found = packages(extras)
        known = sorted((each for each in found.values() if each.size), key=lambda each: -(each.size or 0))
        largest = ", ".join(f"{each.name} {(each.size or 0) / 2**20:.0f}" for each in known[:3])
        total = sum(each.size or 0 for each in known) / 2**20
        lines.append(f"| `{image}` | {len(found)} | {total:.0f} | {largest} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    print(table())
    if arguments:
        folder = Path(arguments[0])
        folder.mkdir(parents=True, exist_ok=True)
        for image, extras in images().items():
            (folder / f"headrace-{image}.cdx.json").write_text(bill(image, extras), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
