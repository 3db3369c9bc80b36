"""Readers of measurements, one file a format, and the registry that finds them."""
