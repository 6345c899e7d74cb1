"""What was asked for, and how it is run."""
