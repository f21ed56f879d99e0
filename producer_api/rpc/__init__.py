"""The front end by gRPC: the same jobs, through the same admission."""
