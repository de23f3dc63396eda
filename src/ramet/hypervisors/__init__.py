"""Drivers: one class per VMM behind the contract in base.py."""
