"""Times the kernels of a real architecture at real sizes: what an engine step costs the GPU."""
