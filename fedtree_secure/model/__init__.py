"""The frozen model and its adapters. Knows no client and no server."""
