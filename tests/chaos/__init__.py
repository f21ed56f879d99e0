"""Faults against whole processes, and whether the delivery contract holds under them. See docs/chaos.md."""
