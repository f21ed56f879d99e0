"""Models: where their files come from, and which workers serve them.

Every top-level package may import this one.
"""
