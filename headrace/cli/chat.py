"""A conversation in the terminal. It keeps the turns and knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any, Protocol

from rich.console import Console

from shared.errors import HeadraceError

QUIT = ("/quit", "/exit")


class Chatter(Protocol):
    def chat_text(self, body: dict[str, Any]) -> Generator[str]: ...


class Chat:
    """Reads a line, streams the answer, remembers both.

    Args:
        client: answers; HeadraceClient is one.
        options: sampling parameters of every turn.
    """

    def __init__(
        self, client: Chatter, model: str, system: str | None, options: dict[str, Any], console: Console
    ) -> None:
        self._client = client
        self._model = model
        self._options = options
        self._console = console
        self._messages = [{"role": "system", "content": system}] if system else []

    def run(self) -> None:
        """Until Ctrl-D or /quit."""
        self._console.print(f"[bold]{self._model}[/]  [dim]/quit ends, Ctrl-C stops an answer[/]")
        while True:
            try:
                line = self._console.input("[bold green]> [/]").strip()
            except EOFError:
                self._console.print()
                return
            except KeyboardInterrupt:
                self._console.print()
                continue
            if line in QUIT:
                return
            if line:
                self._turn(line)

    def _turn(self, line: str) -> None:
        asked = [*self._messages, {"role": "user", "content": line}]
        said = ""
        try:
            with closing(
                self._client.chat_text({"model": self._model, "messages": asked, **self._options})
            ) as pieces:
                for piece in pieces:
                    said += piece
                    self._console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            self._console.print(" [dim](stopped)[/]", end="")
        except HeadraceError as error:
            self._console.print(f"[red]{error.message}[/]")
            return
        self._console.print()
        self._messages = [*asked, {"role": "assistant", "content": said}]
