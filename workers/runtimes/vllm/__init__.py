"""Runtime "vllm": vLLM's engine in the worker's process.

vLLM schedules and computes. Encoding of prompts, choice of tokens, text and ends of answers are those of the native
engine, so that an answer is logged and continued in the same way. Only `runtimes.select` imports it.
"""

from workers.runtimes.vllm.loading import load

__all__ = ["load"]
