"""The live dispatcher: an OpenAI-compatible streaming proxy that drives `core`."""
