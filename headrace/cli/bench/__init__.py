"""`headrace bench`: each command imports its benchmark when it runs.

Only `headrace.cli.main` and tests import it.
"""

from headrace.cli.bench import engine, predict, server
from headrace.cli.bench.options import app

__all__ = ["app", "engine", "predict", "server"]
