"""Sparse dictionaries: training, evaluation and reports. Only the command line imports this package."""
