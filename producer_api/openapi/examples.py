"""Bodies that can be sent as they are, for the OpenAPI document. It does not know the routes beyond their paths."""

from __future__ import annotations

from typing import Any

Examples = dict[str, dict[str, Any]]  # bodies by what they show

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
    "required": ["city", "country"],
    "additionalProperties": False,
}


def examples(model: str, embedder: str) -> dict[str, Examples]:
    """By path, of its POST.

    Args:
        model, embedder: the served models' names.
    """
    question = [{"role": "user", "content": "What is the capital of France?"}]
    chat = {"model": model, "messages": question, "max_tokens": 64}
    text = {"model": model, "prompt": "Rivers are", "max_tokens": 32}
    return {
        "/v1/chat/completions": {
            "A question": chat,
            "Streamed, with usage": {**chat, "stream": True, "stream_options": {"include_usage": True}},
            "Held to a JSON schema": {
                **chat,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "place", "strict": True, "schema": SCHEMA},
                },
            },
            "With log-probabilities": {**chat, "max_tokens": 4, "logprobs": True, "top_logprobs": 3},
        },
        "/v1/chat/completions/stream": {"A question": chat},
        "/v1/completions": {
            "A text": text,
            "Several prompts, streamed": {**text, "prompt": ["Rivers are", "Mills are"], "stream": True},
            "Echo, with log-probabilities": {**text, "max_tokens": 1, "echo": True, "logprobs": 1},
        },
        "/v1/embeddings": {
            "Two texts": {"model": embedder, "input": ["a mill wheel", "a water wheel"]},
            "Short vectors": {"model": embedder, "input": "a mill wheel", "dimensions": 8},
        },
        "/v1/responses": {
            "A question": {"model": model, "input": "What is the capital of France?", "max_output_tokens": 64},
            "In the background": {"model": model, "input": "Write about rivers.", "background": True},
        },
        "/v1/jobs": {"A job": text, "A chat, urgent": {**chat, "priority": "interactive"}},
        "/v1/batches": {
            "A batch": {
                "input_file_id": "file-of-your-upload",
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            }
        },
        "/tokenize": {
            "A text": {"model": model, "prompt": "Rivers are", "return_token_strs": True},
            "A chat": {"model": model, "messages": question},
        },
        "/detokenize": {"Two tokens": {"model": model, "tokens": [40, 41]}},
    }
