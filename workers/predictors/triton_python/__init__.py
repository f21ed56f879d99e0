"""The Python interface of Triton's python backend, for models that were written for it."""
