"""Requests of `headrace bench speculation`, their texts, and drafts that are always right."""
