"""Preparation of requests for the engine: prompts as token ids, dropped turns, constraints of answers.

The worker, its start and its canary use it. It knows the engine by `workers.engine.interface` only.
"""
