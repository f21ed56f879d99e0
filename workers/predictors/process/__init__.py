"""Predictors in processes of their own: libraries that may crash, and code of the user's.

The worker's side is `predictor` (instances of a model) over `child_process` (one life of a process); `child` is the
program of the process. They speak `messages` in `frames` over a socket pair. Only `workers.predictors.select`
imports this package.
"""
