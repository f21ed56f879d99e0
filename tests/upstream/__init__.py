"""The runtime upstream against real servers. scripts/test-upstream runs it."""
