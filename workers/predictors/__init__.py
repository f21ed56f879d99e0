"""Models that do not generate: what waits when a step begins is the next batch."""
