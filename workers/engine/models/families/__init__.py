"""Families of decoders that differ from Llama in more than a few fields: config.json, and mixtures of experts.

The registry and models/llama.py import this package.
"""
