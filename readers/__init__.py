"""From files of interactions, items and embeddings to flat integer arrays, split."""
