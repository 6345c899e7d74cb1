"""The training loop: from the start or a checkpoint of an experiment to its outcome."""
