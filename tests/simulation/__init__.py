"""`scripts/check-sim`: a real run at small scale beside its simulation."""
