"""Sweeps over HTTP: a REST API and a page. It reads files, starts runs, and holds no truth of its own."""
