"""Measures how long an engine's steps take, fits a latency profile, and says how good it is."""
