"""The continuous-batching engine: tokens in, tokens out, one step at a time.

The worker imports it through interface.py; the programs that load an engine import engine.py or
encoder_engine.py. From `shared` it uses the protocol's types, the settings and the errors.
"""
