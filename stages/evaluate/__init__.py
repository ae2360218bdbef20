"""A trained checkpoint and samples to a scored report."""
