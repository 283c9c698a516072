"""What a layer's features do in one prompt."""
