"""Who may call, and what it is allowed: kept in a database beside Redis, and off every request's way."""
