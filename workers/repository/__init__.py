"""The model repository of a worker: the descriptions and files of its models.

Of the worker, only its start imports this package.
"""
