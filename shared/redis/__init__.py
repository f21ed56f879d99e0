"""Redis: clients for one node, Sentinel and Cluster, the keys, the server's clock, and the embedded Valkey.

The lowest floor of `shared` beside `settings` and `errors`.
"""
