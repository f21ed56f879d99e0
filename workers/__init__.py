"""The worker process: pulls requests, runs them through the engine and appends their answers to the token log."""
