"""Uploaded and produced files: their content on disk, what is known of each in Redis."""
