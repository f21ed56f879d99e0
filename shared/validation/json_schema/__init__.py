"""JSON schemas that constrain answers: parsing, checks, and their translation for the grammar compiler."""
