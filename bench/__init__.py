"""Measurements for developers, beside those of ``ramet.bench``, on fresh file systems; no tests."""
