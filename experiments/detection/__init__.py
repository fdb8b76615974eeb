"""A detector and a segmenter on any backbone; ``experiments.detection.training`` registers them."""
