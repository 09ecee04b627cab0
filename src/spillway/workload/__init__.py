"""What arrives: public traces and synthetic workloads, as rows. Shared by simulator and client."""
