"""The queue of requests: one interface, with Redis Streams and memory behind it.

`shared.backend` puts the parts together; `producer_api` and `workers` use the interface.
"""
