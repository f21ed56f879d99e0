"""Redis: clients for one node, Sentinel and Cluster, the keys, and the embedded Valkey.

The lowest floor of `shared` beside `settings` and `errors`.
"""
