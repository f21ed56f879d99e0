"""Policies that choose a worker for a request: one module for each, without I/O.

`shared.queue.router` calls them where requests are published. This package may import the settings, the protocol
and `shared.validation`.
"""
