"""The durable answer: a log per request, and the live wake-ups beside it."""
