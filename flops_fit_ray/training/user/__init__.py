"""The user's model, data and loss, unchanged."""
