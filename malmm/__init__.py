"""The model: memory banks, Q-Former, connector, prompt, frozen language model. Pure torch; of files, weights alone."""
