"""Questions about one sweep directory: what it holds, what changed, whether it is valid, what to run next."""
