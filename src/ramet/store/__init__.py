"""The store: its layout, locks, names, atomic writes, and the one function that copies."""
