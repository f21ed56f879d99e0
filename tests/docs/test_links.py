"""Links, paths and modules that the documentation names exist, and the code map lists every package."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # it also names files that are gone
SPAN = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"[\w.*-]+(/[\w.*-]+)*/?")  # not of a URL: it starts with a slash, or has a scheme
SOURCE = (".py", ".lua", ".cpp", ".proto", ".svg", ".js", ".css", ".html")
PLACEHOLDER = re.compile(r"NAME|FOLDER|FILE")


def anchors(page: Path) -> set[str]:
    """Return the fragments that GitHub gives the headings of `page`."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def problem(page: Path, link: str) -> str | None:
    name, _, fragment = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.exists():
        return f"{link}: no such file"
    if fragment and fragment not in anchors(target):
        return f"{link}: no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    links = LINK.findall(CODE.sub("", page.read_text(encoding="utf-8")))
    found = [problem(page, link) for link in links if "://" not in link]
    assert not [each for each in found if each]


def test_index_lists_every_page() -> None:
    listed = set(LINK.findall((ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in ROOT.glob("docs/*.md")} - {"index.md"} <= listed


OF_USERS = frozenset({"model.py", "iris/", "chat/"})  # files of users that pages name


@cache
def tracked() -> frozenset[str]:
    """Return the tracked files, and the folders that hold them."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = listed.splitlines()
    return frozenset(files) | {str(parent) for name in files for parent in PurePosixPath(name).parents}


def is_missing(word: str) -> bool:
    """Return whether `word` is a path in the repository that does not exist.

    A path that starts with a top-level folder is relative to the root. Others, such as `http/` or
    `cache/kv_cache.py`, may be relative to the package that the text is about.
    """
    if not PATH.fullmatch(word) or PLACEHOLDER.search(word):
        return False
    path = word.rstrip("/")
    if "/" in path and path.partition("/")[0] in tracked():
        return not any(fnmatch(each, path) for each in tracked())
    if "*" in word or not word.endswith(("/", *SOURCE)):
        return False
    return not any(each == path or each.endswith(f"/{path}") for each in tracked())


def words(page: Path) -> set[str]:
    """Return the words of the code in a page: inline, and in blocks."""
    text = page.read_text(encoding="utf-8")
    code = [*SPAN.findall(CODE.sub("", text)), *CODE.findall(text)]
    return {word for each in code for word in each.split()}


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_paths_exist(page: Path) -> None:
    assert {word for word in words(page) if is_missing(word)} <= OF_USERS


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_of_commands_exist(page: Path) -> None:
    modules = re.findall(r"python -m (headrace\.[\w.]+)", page.read_text(encoding="utf-8"))
    assert {name for name in modules if f"{name.replace('.', '/')}.py" not in tracked()} == set()


@pytest.mark.parametrize(
    ("word", "missing"),
    [
        ("shared/settings/fields.py", False),
        ("shared/settings.py", True),
        ("scheduling/fair_queue.py", False),
        ("gone/", True),
        ("docs/kafka/*.json", False),
        ("producer_api/routes/NAME.py", False),
        ("/v1/files/", False),
        ("application/json", False),
    ],
)
def test_a_path_is_told_from_other_words(word: str, missing: bool) -> None:
    assert is_missing(word) == missing


def test_the_code_map_has_every_package_once() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\*\*)?`([\w/]+)/`", text, re.MULTILINE)
    mapped: list[str] = []
    root = ""
    for bold, name in rows:
        root = name if bold else root
        mapped.append(name if bold else f"{root}/{name}")
    folders = {"producer_api", "workers", "workers/engine", "shared", "headrace"}
    packages = {name.removesuffix("/__init__.py") for name in tracked() if name.endswith("/__init__.py")}
    direct = {name for name in packages if name in folders or str(PurePosixPath(name).parent) in folders}
    assert sorted(mapped) == sorted(direct | {"producer_api/web"})
