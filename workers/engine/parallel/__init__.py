"""Tensor parallelism: one engine computes with several processes, its ranks.

Rank 0 is the engine in the worker's process. It starts the others, sends them the inputs of each step, and draws
the tokens. Each rank has its heads and its columns of the MLPs, with their weights and their KV cache. engine.py
imports loading.py; the rest is imported only if an engine has more than one rank.
"""
