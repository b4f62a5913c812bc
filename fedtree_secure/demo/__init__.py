"""The demo: a real model and real text, nine clients on three tasks."""
