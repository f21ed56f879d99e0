"""Background work of an API process, which one process at a time does under a lock.

Only `producer_api.services` and `producer_api.server` import it.
"""
