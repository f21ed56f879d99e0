"""Rules for the requests for a name: aliases, splits, canaries and shadow copies, and what the copies showed."""
