"""Measurements, not tests: Ramet against the raw mechanism and its peers, in one run, as ratios."""
