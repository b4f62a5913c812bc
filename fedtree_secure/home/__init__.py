"""What an owner of rows does at home before and after a run: set up a job, check it, use its result.

All of it sees rows, and what it prints or writes stays with their owner. Nothing is charged, and
nothing is sent.
"""
