"""Runtimes: what executes a model in a worker. Each module loads a Generator from the settings.

`select` chooses one; `workers.main` imports only that.
"""
