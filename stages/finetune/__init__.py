"""Embeddings and samples to a checkpoint."""
