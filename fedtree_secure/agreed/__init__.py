"""Public computations that clients and server both repeat. No rows, no keys."""
