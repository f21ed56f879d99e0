"""LoRA adapters: which ones are registered, and the orders by which the API has workers check and load them.

Workers and the API import this package; it imports Redis, the names of models and the protocol.
"""
