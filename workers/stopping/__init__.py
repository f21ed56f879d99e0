"""Reasons for which a worker leaves, other than a signal: an operator's order, and the notice of a cloud."""
