"""What the front end alone returns; what other ways in share is in shared.schemas."""
