"""Scheduling: which sequences compute how many tokens in the next step.

The engine imports this package.
"""
