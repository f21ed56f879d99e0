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
        packages: requirements for pip or npm, with exact versions; the first is the client itself.
        program: file in `programs/`.
    """

    name: str
    runtime: Literal["python", "node"]
    packages: tuple[str, ...]
    program: str

    @property
    def version(self) -> str:
        """The client's own version."""
        return self.packages[0].rpartition("==" if self.runtime == "python" else "@")[2]


CLIENTS: tuple[Client, ...] = (
    Client("openai (Python)", "python", ("openai==3.57.0",), "openai_python.py"),
    Client("openai (Node)", "node", ("openai@6.49.0",), "openai_node.mjs"),
    Client(
        "Vercel AI SDK",
        "node",
        ("ai@6.0.326", "@ai-sdk/openai@3.0.141", "@ai-sdk/openai-compatible@2.0.92"),
        "ai_sdk.mjs",
    ),
    Client(
        "langchain-openai, langgraph",
        "python",
        ("langchain-openai==1.7.4", "langgraph==1.2.24"),
        "langchain_client.py",
    ),
    Client(
        "llama-index",
        "python",
        ("llama-index-llms-openai-like==0.8.1", "llama-index-embeddings-openai-like==0.4.0"),
        "llamaindex_client.py",
    ),
    Client("instructor", "python", ("instructor==1.17.0",), "instructor_client.py"),
    Client("pydantic-ai", "python", ("pydantic-ai-slim[openai]==2.68.0",), "pydantic_ai_client.py"),
    Client("openai-agents", "python", ("openai-agents==0.24.0",), "openai_agents_client.py"),
    Client("litellm", "python", ("litellm[proxy]==1.108.7",), "litellm_client.py"),
    Client("huggingface_hub", "python", ("huggingface_hub==2.4.0", "numpy==2.4.6"), "huggingface_client.py"),
    Client(
        "langchain-huggingface",
        "python",
        ("langchain-huggingface==1.2.3", "huggingface_hub==1.33.0", "numpy==2.4.6"),
        "langchain_huggingface_client.py",
    ),
    Client("dspy", "python", ("dspy==3.4.1",), "dspy_client.py"),
    Client("smolagents", "python", ("smolagents[openai]==1.26.0",), "smolagents_client.py"),
    Client("llm", "python", ("llm==0.36",), "llm_client.py"),
    Client("guidellm", "python", ("guidellm==0.8.1",), "guidellm_client.py"),
    Client("aiperf", "python", ("aiperf==0.13.0",), "aiperf_client.py"),
    Client(
        "lm-eval", "python", ("lm_eval[api]==0.4.13", "torch==2.13.0", "transformers==5.24.0"), "lm_eval_client.py"
    ),
    Client("aider", "python", ("aider-chat==0.86.2",), "aider_client.py"),
    Client("promptfoo", "node", ("promptfoo@0.121.20",), "promptfoo.mjs"),
    Client("Codex CLI", "node", ("@openai/codex@0.171.0",), "codex.mjs"),
    Client("cohere", "python", ("cohere==7.3.1",), "cohere_client.py"),
    Client("Celery", "python", ("celery[redis]==5.7.0",), "celery_client.py"),
    Client("EventSource", "node", ("eventsource@4.1.1",), "eventsource.mjs"),
    Client("tritonclient", "python", ("tritonclient[grpc,http]==2.73.0",), "triton_client.py"),
    Client("grpcio reflection", "python", ("grpcio-reflection==1.85.1",), "reflection.py"),
)
