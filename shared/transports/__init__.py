"""Queues that carry requests from the front end to the workers."""
