"""Execution of one step: its inputs, paged attention, CUDA graphs, device selection.

The model runner and the models import this package.
"""
