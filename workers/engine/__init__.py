"""The continuous-batching engine: tokens in, tokens out, one step at a time.

Knows nothing of queues, leases or HTTP; of `shared` it uses the wire types and the errors.
"""
