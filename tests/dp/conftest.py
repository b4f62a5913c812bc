"""Makes `dp_models` importable: the suite runs with importlib mode, which adds no folder to the
path.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)  # tiny models: threads only get in each other's way
