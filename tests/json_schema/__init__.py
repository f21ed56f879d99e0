"""Measurement of the grammars of JSON schemas against public collections: `scripts/json-schema-suite`."""
