"""What a person reads in a terminal or a log. Words only: nothing is decided or computed here."""
