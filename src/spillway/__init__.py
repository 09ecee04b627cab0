"""Spillway: a prefill-deflecting router and simulator for disaggregated LLM serving."""

__version__ = "0.1.0"
