"""One file per architecture: hyper-parameters, weight names, forward pass."""
