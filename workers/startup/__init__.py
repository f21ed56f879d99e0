"""Start of a worker: OpenMP's settings, sleep until the model is woken, and requests that run before it is ready.

`workers.main` imports this package.
"""
