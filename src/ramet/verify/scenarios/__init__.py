"""What is done to real guests, and where it is looked at: one file for each scenario."""
