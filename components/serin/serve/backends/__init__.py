"""Where the models of releases are served: our own engine processes, and OpenAI-compatible servers elsewhere."""
