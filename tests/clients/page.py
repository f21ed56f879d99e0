"""docs/clients.md: the rows of each client, as its last run reported them."""

from __future__ import annotations

from pathlib import Path

from tests.clients.catalog import CLIENTS
from tests.clients.matrix import Row

PAGE = Path("docs/clients.md")
COLUMNS = "| client | version | run on | feature | result |\n| --- | --- | --- | --- | --- |\n"
HEAD = f"""# Clients

Programs that use these clients unmodified, against `headrace up` with SmolLM2-135M and all-MiniLM-L6-v2 on a CPU.
`scripts/test-clients` runs them, each in an environment of its own, and writes this page. With names of clients, it
runs those alone and replaces their rows.

{COLUMNS}"""


def update(row: Row, page: Path = PAGE) -> None:
    """Replace a client's rows. Those of clients that are no longer in the catalog are dropped."""
    lines = {**lines_by_client(page), row.client.name: list(row.lines())}
    table = (line for client in CLIENTS for line in lines.get(client.name, ()))
    page.write_text(HEAD + "".join(f"{line}\n" for line in table), encoding="utf-8")


def lines_by_client(page: Path) -> dict[str, list[str]]:
    """Return the lines of the page's table by client; none if the table has other columns."""
    _, _, table = page.read_text(encoding="utf-8").partition(COLUMNS)
    found: dict[str, list[str]] = {}
    name = ""
    for line in table.splitlines():
        name = line.split("|")[1].strip() or name
        found.setdefault(name, []).append(line)
    return found
