"""Networks that have learned: from pictures to probabilities, folded, exported, measured."""
