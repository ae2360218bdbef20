"""Videos to frames: what the sampling rule takes, kept as JPEG or PNG."""
