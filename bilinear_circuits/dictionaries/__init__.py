"""Named directions with an encoder, a rule and a decoder."""
