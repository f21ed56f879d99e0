"""Serving of one model of the repository in a worker process: its versions, their memory, and its worker.

`workers.repository` imports it.
"""
