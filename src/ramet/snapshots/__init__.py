"""Snapshots: captured from a live VMM, derived for a fork, published once, never written again."""
