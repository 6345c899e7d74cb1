"""The user's model, data and loss as they come."""
