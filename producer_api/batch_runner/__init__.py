"""The Celery application that runs OpenAI batches and the task `headrace.generate`.

It admits each line through the same gateway as HTTP. Only `headrace.cli` and the launcher import it.
"""
