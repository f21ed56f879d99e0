"""The answer to the question of `headrace up --ask`."""

from __future__ import annotations

import threading

from headrace.client import HeadraceClient
from headrace.terminal import print_text


class AnswerPrinter(threading.Thread):
    """Thread that prints the answer to a question; `failure` is for the thread that started it."""

    def __init__(self, url: str, model: str, question: str) -> None:
        super().__init__(name="answer", daemon=True)  # so that Ctrl-C does not wait for it
        self._url = url
        self._body = {"model": model, "messages": [{"role": "user", "content": question}]}
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            with HeadraceClient(self._url) as client:
                for text in client.chat_text({**self._body, "temperature": 0, "max_tokens": 512}):
                    print_text(text, end="")
            print()
        except Exception as error:  # noqa: BLE001  raised again in the thread that waits for the answer
            self.failure = error
