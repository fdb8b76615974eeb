"""Benchmarks of speed, one command each."""
