"""Batches of requests: where each is in its life, and who works on which part of it."""
