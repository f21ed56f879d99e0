"""The gRPC front end: the service `headrace.v1.Inference`, health and reflection.

Messages become the same bodies that HTTP takes. Only `producer_api.server` imports this package.
"""
