"""The durable answer: one entry per seq, then one terminal event, and the readers that follow it.

`shared.backend` puts the parts together; `producer_api` and `workers` use the interface.
"""
