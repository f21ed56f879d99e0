"""What each API accepts and returns, checked at the edge."""
