"""HTTP itself: the connection protocol, bodies, headers, SSE frames, errors and endpoints.

Nothing here depends on one API. `answers` and everything above it import this package.
"""
