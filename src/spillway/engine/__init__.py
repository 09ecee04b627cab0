"""The plug-in inside a vLLM engine: sizes prompt chunks step by step, and reports its state."""
