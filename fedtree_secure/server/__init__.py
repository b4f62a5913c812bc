"""The server: public settings, masked vectors and opened sums, nothing else."""
