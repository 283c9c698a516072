"""One module per verb of the command line: `Arguments` and `run`. Nothing heavy is imported before `run`."""
