"""Where and when: experiments as Ray Tune trials. The ledger is the truth; Tune only executes."""
