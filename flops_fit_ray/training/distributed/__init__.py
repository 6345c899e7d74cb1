"""What the workers of one experiment compute together."""
