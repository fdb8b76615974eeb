"""Forms of convolution and pooling for XLA's CPU backend."""
