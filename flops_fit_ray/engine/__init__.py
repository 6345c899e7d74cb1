"""Execution on Ray: experiments as Ray Tune trials. The ledger is the record; Tune only schedules."""
