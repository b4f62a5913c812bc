"""One attempt of a round: its session, its messages, and the opening of its sums."""
