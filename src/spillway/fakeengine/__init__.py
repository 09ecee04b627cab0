"""One simulated node behind a real HTTP port, at wall-clock pace: a cluster without a GPU."""
