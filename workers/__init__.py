"""The worker side: pulls requests, runs them through the engine and writes their answers."""
