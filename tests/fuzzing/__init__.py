"""Hostile input by the million, against the router in memory: `make fuzz`. See `surfaces.py`."""
