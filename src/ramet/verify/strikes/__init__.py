"""What sabotages do: each breaks isolation from outside in one known way, on the real files and processes of a real run."""
