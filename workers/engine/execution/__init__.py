"""Execution of one step: its inputs, paged attention, CUDA graphs and the device.

The model runner and the models import this package.
"""
