"""Supervision of a worker: hung steps, canaries, and messages to what supervises the process."""
