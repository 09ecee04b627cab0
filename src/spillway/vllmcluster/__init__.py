"""A real prefill/decode cluster of vLLM nodes on one machine: tiny model, CPU, NIXL over TCP."""
