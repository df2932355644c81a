"""Semantic IDs: what a tokenizer is, the table it makes, how the table is searched and exchanged."""
