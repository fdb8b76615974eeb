"""Figures of speed, each one command; ``python -m benchmarks.compare`` sets them beside peers'."""
