"""One experiment, from the user's parts to a held-out loss. Torch lives here; Ray is unknown here."""
