"""Measures Spillway on real vLLM engines on this machine's processor, and writes it down."""
