"""Verbs of the command line that need dictionaries to be trained or evaluated."""
