"""Playground and API reference in a real browser, served by a real server."""

from __future__ import annotations

import os
import signal

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.support.launched_server import Launched
from tests.support.page_watch import Watch
from workers.scripted_engine import expected, text_of

pytestmark = pytest.mark.slow

TOKENS = 256  # the default of the playground
CHAT = "/v1/chat/completions"


def scripted_answer(*turns: tuple[str, str]) -> str:
    """Return the scripted engine's answer to these turns."""
    prompt = [ord(character) for role, content in turns for character in f"{role}:{content}\n"]
    return "".join(text_of(expected(prompt, 0, position)) for position in range(TOKENS))


def open_playground(page: Page, up: Launched) -> None:
    page.goto(up.url)
    expect(page.locator("#status")).to_have_text("scripted is ready")
    expect(page.locator("#model")).to_have_value("scripted")


def ask(page: Page, question: str) -> None:
    page.locator("#prompt").fill(question)
    page.locator("#prompt").press("Enter")


def last_answer(page: Page) -> Locator:
    return page.locator(".turn.assistant").last


def finished_text(page: Page) -> str:
    """Wait until the last answer has ended, and return its text without the note."""
    expect(last_answer(page).locator(".note")).to_have_text("cut at the maximum number of tokens")
    text: str = last_answer(page).evaluate("bubble => bubble.firstChild.data")
    return text


def await_text(page: Page, count: int) -> None:
    """Wait until the last answer has `count` characters and is still growing."""
    page.wait_for_function(
        "count => [...document.querySelectorAll('.turn.assistant.live')].at(-1)?.textContent.length >= count",
        arg=count,
    )


def fits(page: Page) -> bool:
    """Return whether the page fits into the window's width."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_playground_streams_before_and_after_a_reload(watch: Watch, up: Launched) -> None:
    page = watch.page
    open_playground(page, up)
    ask(page, "one")
    first = scripted_answer(("user", "one"))
    assert finished_text(page) == first
    assert fits(page)

    page.reload()
    expect(page.locator("#status")).to_have_text("scripted is ready")
    assert page.locator("body").evaluate("body => getComputedStyle(body).display") == "flex"
    assert page.locator(".turn").all_text_contents() == ["one", first]  # the chat is still there
    expect(page.locator("#model")).to_have_value("scripted")
    ask(page, "two")
    assert finished_text(page) == scripted_answer(("user", "one"), ("assistant", first), ("user", "two"))
    assert fits(page)


def test_playground_resumes_an_answer_after_a_reload(watch: Watch, up: Launched) -> None:
    page = watch.page
    open_playground(page, up)
    ask(page, "[pace 10] resume")
    await_text(page, 60)
    with page.expect_request(f"{up.url}{CHAT}") as resumed:
        page.reload()
    assert int(resumed.value.headers["last-event-id"]) > 0
    assert finished_text(page) == scripted_answer(("user", "[pace 10] resume"))
    assert page.locator(".turn").count() == 2
    page.reload()
    expect(page.locator("#status")).to_have_text("scripted is ready")
    assert page.locator(".turn.live").count() == 0


@pytest.mark.parametrize("watch", ["desktop"], indirect=True)
def test_reloaded_playground_resumes_after_a_worker_death(watch: Watch, up: Launched) -> None:
    page = watch.page
    open_playground(page, up)
    up.await_idle()
    ask(page, "[pace 40] takeover")
    await_text(page, 60)
    completion: str = page.evaluate("JSON.parse(sessionStorage.getItem('headrace-answer')).id")
    os.kill(up.busy_worker(), signal.SIGKILL)
    page.reload()

    text = finished_text(page)
    up.await_line("(?i)worker.* died")
    job = httpx.get(f"{up.url}/v1/jobs/{completion.replace('chatcmpl-', 'req_')}").json()
    assert text == job["choices"][0]["text"]
    assert text == scripted_answer(("user", "[pace 40] takeover"))


@pytest.mark.parametrize("watch", ["desktop"], indirect=True)
def test_stop_after_a_reload_cancels_the_request(watch: Watch, up: Launched) -> None:
    page = watch.page
    open_playground(page, up)
    ask(page, "[pace 200] stop")
    await_text(page, 20)
    page.reload()
    await_text(page, 30)
    with page.expect_response(lambda response: response.request.method == "DELETE") as cancelled:
        page.locator("#stop").click()
    expect(last_answer(page).locator(".note")).to_have_text("stopped")
    assert httpx.get(cancelled.value.url).json()["state"] == "cancelled"


def test_api_reference_survives_a_reload(watch: Watch, up: Launched) -> None:
    page = watch.page
    page.goto(f"{up.url}/docs")
    for _ in range(2):
        section = page.locator("#post-v1-chat-completions")
        expect(section).to_be_visible()
        assert page.locator("#routes section").count() > 20
        assert fits(page)
        page.reload()


ICON = """() => new Promise((resolve) => {
    const icon = new Image();
    icon.onload = () => resolve(true);
    icon.onerror = () => resolve(false);
    icon.src = "/favicon.ico";
})"""


@pytest.mark.parametrize("path", ["/openapi.json", "/ready", "/v1/models"])
@pytest.mark.parametrize("watch", ["desktop"], indirect=True)
def test_an_api_answer_opens_with_its_icon(path: str, watch: Watch, up: Launched) -> None:
    """A window shows the icon of an API answer; headless, an image tests the answer's policy instead."""
    watch.page.goto(f"{up.url}{path}")
    assert watch.page.evaluate(ICON)
