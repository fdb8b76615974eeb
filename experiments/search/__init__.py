"""A search for a compact normalizer-free network: docs/search.md says how."""
