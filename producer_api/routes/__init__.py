"""HTTP routes, one module per API.

A module has handlers with their `Endpoint` declarations; `catalog` collects them. `app`, `admin_app` and
`batch_runner` import this package.
"""
