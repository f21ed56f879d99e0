"""`scripts/test-drain`: workers that must leave hand their answers over, again and again."""
