"""Text for terminals and logs. Nothing is decided or computed here."""
