"""`headrace chat`: a conversation in the terminal."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.markup import escape

from headrace.cli.options import DEFAULT_URL, STREAM_RETRY_S, ApiKey, Url, client_at, first_model
from headrace.terminal import Terminal
from shared.errors import HeadraceError

QUIT_COMMANDS = ("/quit", "/exit")


def chat(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    model: Annotated[str | None, typer.Option(help="A served model; default: the first.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum number of tokens of one answer.")] = None,
) -> None:
    """Chat with a model. Ctrl-C stops an answer; Ctrl-D or /quit ends the chat."""
    with client_at(url, api_key, STREAM_RETRY_S) as client:
        options = {"temperature": temperature} | ({"max_tokens": max_tokens} if max_tokens else {})
        Chat(client, model or first_model(client), system, options, Terminal()).run()


class ChatClient(Protocol):
    """The part of HeadraceClient that a chat uses."""

    def chat_text(self, body: dict[str, Any]) -> Generator[str]: ...


class Chat:
    """Reads a line, streams the answer, and keeps both for the next turn.

    Args:
        options: sampling parameters of every turn.
    """

    def __init__(
        self, client: ChatClient, model: str, system: str | None, options: dict[str, Any], console: Console
    ) -> None:
        self._client = client
        self._model = model
        self._options = options
        self._console = console
        self._messages = [{"role": "system", "content": system}] if system else []

    def run(self) -> None:
        """Read and answer lines until Ctrl-D or /quit."""
        self._console.print(f"[bold]{escape(self._model)}[/]  [dim]/quit ends the chat, Ctrl-C stops an answer[/]")
        while True:
            try:
                line = self._console.input("[bold green]> [/]").strip()
            except EOFError:
                self._console.print()
                return
            except KeyboardInterrupt:
                self._console.print()
                continue
            if line in QUIT_COMMANDS:
                return
            if line:
                self._run_turn(line)

    def _run_turn(self, line: str) -> None:
        messages = [*self._messages, {"role": "user", "content": line}]
        answer = ""
        try:
            with closing(
                self._client.chat_text({"model": self._model, "messages": messages, **self._options})
            ) as pieces:
                for piece in pieces:
                    answer += piece
                    self._console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            self._console.print(" [dim](stopped)[/]", end="")
        except HeadraceError as error:
            self._console.print(error.message, style="red", markup=False, highlight=False)
            return
        self._console.print()
        self._messages = [*messages, {"role": "assistant", "content": answer}]
