"""Answers in the shape of each API: chat, completions, responses, embeddings, jobs.

A module here turns token events into the objects and chunks of one API. `routes`, `rpc` and `batch_runner`
import this package.
"""
