"""A whole cluster in one process on a virtual clock, driving the production dispatcher."""
