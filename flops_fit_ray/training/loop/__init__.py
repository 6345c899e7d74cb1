"""One experiment from its start, or its checkpoint, to its outcome."""
