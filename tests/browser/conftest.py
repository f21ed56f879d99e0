"""Chromium driven by Playwright, with all errors of a page collected."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.support.launched_server import Launched
from tests.support.page_watch import Watch
from tests.support.waiting import LIMIT_S

LEASE_S = 3
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LIMIT_MS = LIMIT_S * 1000
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Browser with an empty profile. Without Chromium these tests fail; they are never skipped."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    assert path is not None, "no Chromium is installed; scripts/setup says how to install one"
    expect.set_options(timeout=LIMIT_MS)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(params=sorted(SIZES))
def watch(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Watch]:
    """New page in each size; the test fails on any error of the page."""
    width, height = SIZES[request.param]
    with browser.new_context(viewport={"width": width, "height": height}) as context:
        context.set_default_timeout(LIMIT_MS)
        watched = Watch(context.new_page())
        yield watched
        assert watched.errors == []


@pytest.fixture(scope="package")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """Full installation on the scripted engine, with two workers, so that one can take over."""
    folder = tmp_path_factory.mktemp("browser") / "data"
    # long enough that a worker with a late heartbeat on a loaded machine is not reported as gone
    made = Launched(folder, "--model", "scripted", "--workers", "2", lease=LEASE_S)
    try:
        made.await_line("^ready: ")
        yield made
    finally:
        made.stop()
