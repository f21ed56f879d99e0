"""HTTP routes, one module per API.

A module declares its endpoints and calls `answers` and `admission`. Only `producer_api.app` and
`producer_api.admin_app` import this package.
"""
