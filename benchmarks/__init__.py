"""Benchmarks: `make bench`, or `python -m benchmarks [NAME ...]`, measures and writes docs/benchmarks.md.

One file a benchmark, each a program that runs in the environment of what it measures and prints its tables as JSON.
"""
