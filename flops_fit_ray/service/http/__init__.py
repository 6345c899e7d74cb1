"""What stands between the service and whoever asks: tokens, names, redaction, pages, refusals."""
