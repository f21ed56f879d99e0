"""The process: logging, sockets, child processes, garbage collection.

Every package may import this one; it imports only `shared.settings` and `shared.errors`.
"""
