"""The demo: a real model and real text, nine clients on three tasks."""

from fedtree_secure.demo.data import demo_clients as clients
from fedtree_secure.demo.data import minilm_folder as minilm

__all__ = ["clients", "minilm"]
