"""Bodies of Headrace's own API: jobs and tokenization.

`producer_api`, `shared.kafka` and `headrace` import this package.
"""
