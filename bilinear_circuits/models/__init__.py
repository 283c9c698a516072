"""Language models and their bilinear layers: binding, running, reading and importing."""
