"""Files and objects: where they are, written whole or not at all, by one writer at a time."""
