"""What is known of the sweeps, and kept in memory."""
