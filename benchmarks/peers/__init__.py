"""Ways to share adapters under one budget, each in a file of its own, on one interface.

A module has `SETTINGS`, what its job has otherwise than the base job, and `play(game)`, its rounds.
`game.Game` gives the clients' noisy gradients and moves what groups share.
"""

from types import ModuleType

from peers import (
    fedalt,
    feddpa,
    fedit,
    fedsa_lora,
    ffa_lora,
    flat,
    head_alone,
    head_group,
    local,
    pina,
    rolora,
    silhouette_tree,
    tree,
    tree_both,
    tree_without_external,
)

METHODS: dict[str, ModuleType] = {
    "head alone": head_alone,
    "head group": head_group,
    "local": local,
    "FedIT": fedit,
    "FFA-LoRA": ffa_lora,
    "FedSA-LoRA": fedsa_lora,
    "RoLoRA": rolora,
    "FedDPA": feddpa,
    "FedALT": fedalt,
    "FedLEASE": flat,
    "PINA": pina,
    "tree": tree,
    "tree, A and B": tree_both,
    "tree, no external": tree_without_external,
    "tree, silhouette": silhouette_tree,
}
