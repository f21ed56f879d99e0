"""Text: tokenizer, detokenizer, chat templates, and the forms of tool calls.

The engine and the worker import this package.
"""
