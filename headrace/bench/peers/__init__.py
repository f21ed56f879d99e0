"""Other engines that the benchmarks compare with. Each runs in a process of its own, vLLM in its own environment.

Only `headrace.bench` imports it.
"""
