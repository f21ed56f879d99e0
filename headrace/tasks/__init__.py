"""What is long and no token stream, run by Celery: batches, `headrace.generate`, upkeep."""
