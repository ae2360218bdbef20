"""Annotation formats to one table of samples."""
