"""The gRPC front end: the services of the catalog, health and reflection.

Messages become the same bodies that HTTP takes. Only `producer_api.server` imports this package.
"""
