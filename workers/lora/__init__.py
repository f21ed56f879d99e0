"""LoRA adapters of one worker: which of them are in memory, and the orders that load and forget them.

`workers/worker.py` and `workers/main.py` import this package.
"""
