"""Execution: instances of a model in threads, ensembles, warm-up and what is measured on the way."""
