"""State: an append-only revision log with compare-and-swap, consistent lists and gapless watches."""
