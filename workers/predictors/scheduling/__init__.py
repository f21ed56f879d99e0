"""Scheduling: which requests an instance of a model executes next, and together.

Its classes read no clock and start no threads: times are arguments, in nanoseconds of one monotonic clock.
"""
