"""Webhooks: what is told to whom when work ends, signed, to an address that was checked, from a durable list."""
