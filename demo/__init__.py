"""What `make demo` runs on, out of PyPI wheels: photographs, clips and a language model; questions about them."""
