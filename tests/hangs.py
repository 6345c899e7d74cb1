"""When a test stops waiting."""

# What hangs is found by it, and nothing else: a machine that does ten other things is slow, and no test may fail for it
HANG_SECONDS = 900.0
