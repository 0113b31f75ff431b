"""One kind, one file: each compares what is wanted with what is, and moves one step."""
