"""The OpenAPI document: examples, shared responses and pagination parameters.

`schemas`, `answers` and `routes` import this package.
"""
