"""Network architectures as Haiku modules, one family a file; ``registry`` gives them by name."""
