"""What an owner of rows does at home around a run: set up a job, check it, use what came out.

All of it sees rows, and what it prints or writes stays with their owner. Nothing is charged, and
nothing is sent.
"""
