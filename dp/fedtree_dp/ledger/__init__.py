"""The durable account of a data set. Imports no torch."""
