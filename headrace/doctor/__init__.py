"""`headrace doctor`: checks of the machine, the settings, Redis and its permissions.

Each check returns findings. Only `headrace.cli` imports this package.
"""
