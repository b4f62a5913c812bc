"""What the tests of the commands share: calling one, and a job file of CSVs."""

import pytest
from small_jobs import make_clients

from fedtree_secure.cli.app import main


def call(*arguments):
    """Run a command; return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


def write_job(folder, backbone):
    """Write six clients' CSVs and a job file that names them."""
    lines = [
        f'backbone = "{backbone}"',
        "rounds = 1",
        "[privacy]",
        "epsilon = 6",
        "delta = 1e-3",
        "[training]",
        "records = 60",
        "sample_rate = 0.5",
        "head_steps = 4",
    ]
    for client in make_clients(each=3):
        for split in ("train", "test"):
            frame = getattr(client, split).to_pandas()
            frame = frame.rename(columns={"text": "note", "label": "code"})
            frame.to_csv(folder / f"{client.id}-{split}.csv", index=False)
        lines += [
            "[[clients]]",
            f'id = "{client.id}"',
            f'train = "{client.id}-train.csv"',
            f'test = "{client.id}-test.csv"',
            'text = "note"',
            'label = "code"',
        ]
    path = folder / "job.toml"
    path.write_text("\n".join(lines))
    return path
