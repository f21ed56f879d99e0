"""Text: tokenizer, detokenizer, chat templates, and the formats of tool calls.

The engine and the worker import this package.
"""
