"""Model architectures: decoders, BERT, and their checkpoints.

The model runner and the embedding engine import this package.
"""
