"""Admission: what every request passes, whichever API it came by."""
