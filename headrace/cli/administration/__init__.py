"""Commands that watch and steer an installation: queues, workers, API keys, usage, dead letters."""
