"""What requests are charged for, until their ends are known and written down."""
