"""A layer between two dictionaries: its matrices, ledgers, activity, names, low-rank parts and profiles."""
