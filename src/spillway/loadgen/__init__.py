"""Sends a workload to an OpenAI endpoint on schedule, and measures what comes back."""
