"""The model: Q-Former, connector, prompt and frozen language model. Pure torch; reads no file but the LLM's."""
