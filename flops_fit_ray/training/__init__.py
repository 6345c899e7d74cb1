"""Training of one experiment, from the user's model, data and loss to a held-out loss. Imports torch, never Ray."""
