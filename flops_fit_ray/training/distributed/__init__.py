"""Data parallelism and sharding over the workers of one experiment."""
