"""Speculation: several tokens of an answer in one step, with the same bits as one after the other.

A drafter proposes the next tokens, the step computes them in one chunk, and each is kept only if it is the token
that the sampler draws at its place. The engine imports this package.
"""
