"""Trace context of requests, as it passes from process to process.

Every package may import this one; it imports nothing of Headrace.
"""
