"""Flower carries the bytes between a server and its sites. The only package that imports flwr.

It is never trusted: requests are signed by the server and answered once, updates are masked, and a
site's node runs no code that anybody sends.
"""
