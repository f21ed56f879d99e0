"""What both sides agree on: wire types, settings, errors, keys, transports and the durable answer log.

Imports neither torch nor FastAPI.
"""
