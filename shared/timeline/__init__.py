"""Timeline of a request: where its time went, and the main cause if it was slow.

It is derived from the request's record and the marks of its runs; only the API derives it.
"""
