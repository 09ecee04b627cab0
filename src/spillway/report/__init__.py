"""Tables, plots and one HTML page from the records of a run, simulated or measured alike."""
