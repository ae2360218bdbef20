"""What `make demo` runs on: photographs and a language model out of PyPI wheels, and dialogues about them."""
