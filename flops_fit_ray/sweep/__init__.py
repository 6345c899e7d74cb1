"""Questions about one sweep directory and the table that it gives: what it holds, what changed, whether it is valid, what to do next."""
