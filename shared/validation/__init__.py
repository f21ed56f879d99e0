"""Ranges of request fields, and the checks of JSON Schemas that callers send.

`shared.schemas`, `shared.kafka` and `workers` import this package.
"""
