"""All code that touches rows, keys or ledgers."""
