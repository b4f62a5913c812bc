"""What audits attack with: engines, federations and run folders made to be measured, and broken
builds.
"""
