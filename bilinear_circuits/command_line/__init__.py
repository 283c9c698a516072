"""What the verbs share: options, values, folders, records and the terminal."""
