"""`headrace doctor`: checks of the machine, the settings, Redis, its permissions and the served models.

Each check returns findings. Only `headrace.cli` imports this package.
"""
