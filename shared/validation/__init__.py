"""The table of parameters, the bounds on requests, and the checks of JSON Schemas that callers send.

`shared.schemas`, `shared.kafka` and `workers` import this package.
"""
