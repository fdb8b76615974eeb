"""How networks are computed fast; README.md says who should read it."""
