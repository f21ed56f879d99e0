"""Formats in which checkpoints store the matrices of linear layers: one object per format, chosen by config.json.

Integers of 4 and 8 bits stay packed; everything else is expanded to the model's type. To add a format, write a
module with its `StoredFormat` (interface.py) and add it to formats.py.
"""
