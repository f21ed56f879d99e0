"""Where requests for a name go: aliases, splits, canaries and shadow copies, and what the copies showed."""
