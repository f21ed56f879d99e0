"""The clients of the matrix: their packages, pinned, and the programs that use them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Client:
    """A client, installed in an environment of its own.

    Attributes:
        packages: requirements for pip or npm; the first is the client itself.
        program: file in `programs/`.
    """

    name: str
    runtime: Literal["python", "node"]
    packages: tuple[str, ...]
    program: str


CLIENTS: tuple[Client, ...] = (
    Client("openai (Python)", "python", ("openai",), "openai_python.py"),
    Client("openai (Node)", "node", ("openai",), "openai_node.mjs"),
    Client("Vercel AI SDK", "node", ("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible"), "ai_sdk.mjs"),
    Client("langchain-openai, langgraph", "python", ("langchain-openai", "langgraph"), "langchain_client.py"),
    Client(
        "llama-index",
        "python",
        ("llama-index-llms-openai-like", "llama-index-embeddings-openai-like"),
        "llamaindex_client.py",
    ),
    Client("instructor", "python", ("instructor",), "instructor_client.py"),
    Client("pydantic-ai", "python", ("pydantic-ai-slim[openai]",), "pydantic_ai_client.py"),
    Client("openai-agents", "python", ("openai-agents",), "openai_agents_client.py"),
    Client("litellm", "python", ("litellm[proxy]",), "litellm_client.py"),
    Client("huggingface_hub", "python", ("huggingface_hub",), "huggingface_client.py"),
    Client("dspy", "python", ("dspy",), "dspy_client.py"),
    Client("smolagents", "python", ("smolagents[openai]",), "smolagents_client.py"),
    Client("llm", "python", ("llm",), "llm_client.py"),
    Client("guidellm", "python", ("guidellm",), "guidellm_client.py"),
    Client("aiperf", "python", ("aiperf",), "aiperf_client.py"),
    Client("lm-eval", "python", ("lm_eval[api]", "torch", "transformers"), "lm_eval_client.py"),
    Client("aider", "python", ("aider-chat",), "aider_client.py"),
    Client("promptfoo", "node", ("promptfoo",), "promptfoo.mjs"),
    Client("Codex CLI", "node", ("@openai/codex",), "codex.mjs"),
    Client("Celery", "python", ("celery[redis]",), "celery_client.py"),
    Client("EventSource", "node", ("eventsource",), "eventsource.mjs"),
    Client("grpcio reflection", "python", ("grpcio-reflection",), "reflection.py"),
)
