"""`headrace bench routing`: the routing policies compared, on simulated engines behind the real queue.

Only the engines' computing is simulated. Import only from `headrace.bench` and the packages below it.
"""
