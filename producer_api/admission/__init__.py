"""Admission of a request: authorization, limits, deadlines, idempotency, backpressure, and the queue.

The gateway charges a request to its caller and puts it into the queue. `answers`, `routes`, `rpc` and
`batch_runner` import this package.
"""
