"""Declarations of all metrics, and the store that counts them."""
