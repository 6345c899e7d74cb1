"""HTTP parts of the service: the guard with its token, names in paths, redaction, templates, errors."""
