"""Instances: one file per operation, one facade (host.py)."""
