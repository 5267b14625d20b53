"""Questions in, answers and scores out."""
