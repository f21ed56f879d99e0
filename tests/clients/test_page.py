"""docs/clients.md after some of the clients ran."""

from datetime import date

from tests.clients.catalog import CLIENTS
from tests.clients.matrix import Result, Row
from tests.clients.page import COLUMNS, HEAD, update

FIRST, SECOND, THIRD = CLIENTS[:3]
EARLIER, LATER = date(2026, 1, 2), date(2026, 3, 4)


def test_rows_of_clients_that_did_not_run_are_kept(tmp_path):
    page = tmp_path / "clients.md"
    page.write_text(f"{COLUMNS}| no longer listed | 1 | 2026-01-01 | chat | works |\n")
    chat, tools = Result("chat", True), Result("tools", False, "a | b")

    for row in (Row(SECOND, EARLIER, (tools,)), Row(FIRST, EARLIER, (chat, tools)), Row(THIRD, EARLIER, (chat,))):
        update(row, page)
    update(Row(FIRST, LATER, (chat, Result("models", True, "a remark"))), page)

    assert page.read_text() == HEAD + (
        f"| {FIRST.name} | {FIRST.version} | 2026‑03‑04 | chat | works |\n"
        "|  |  |  | models | works: a remark |\n"
        f"| {SECOND.name} | {SECOND.version} | 2026‑01‑02 | tools | **fails**: a / b |\n"
        f"| {THIRD.name} | {THIRD.version} | 2026‑01‑02 | chat | works |\n"
    )
