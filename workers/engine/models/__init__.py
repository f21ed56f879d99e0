"""Model architectures and the loading of their checkpoints.

Each architecture's module maps the tensors of a checkpoint to its weights; registry.py lists the decoders.

The model runner and the embedding engine import this package.
"""
