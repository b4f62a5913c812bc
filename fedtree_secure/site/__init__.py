"""One party of a deployment as a process of its own: its rows, key, store, policy and runs."""
