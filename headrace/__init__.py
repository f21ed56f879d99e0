"""Headrace: queue-driven asynchronous LLM inference, where an accepted answer is never lost."""

__version__ = "0.1.0"
