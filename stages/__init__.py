"""The stages: each a program, each in its own environment, none importing another. See contract.py."""
