"""Studies: one file a claim, with a table, a plot and a verdict."""
