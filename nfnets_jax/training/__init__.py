"""Training: recipe, objective, one update, checkpoints, reports, and the loop that joins them."""
