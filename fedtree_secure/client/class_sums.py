"""Class sums of a client's rows: one release, charged as the head's, and the head that it gives."""

from typing import Any

import numpy as np
import torch

from fedtree_dp import NoiseSource, class_sums
from fedtree_secure.agreed.class_sums import COUNT_SHARE, upload_of
from fedtree_secure.agreed.head_release import sums_classes
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.heads import Centred, last_linear
from fedtree_secure.model.rows import Table


def check_head(job: Job, outputs: int, backbone: Backbone) -> None:
    """Refuse class sums where the head has no place for the numbers of records.

    Args:
        outputs: Classes of the client's head, 0 for none.

    Raises:
        ConfigurationError: See above.
    """
    if not sums_classes(job) or not outputs:
        return
    end, hidden = last_linear(backbone.new_head(outputs))[1], backbone.hidden_size
    if end.bias is None or end.in_features != hidden:
        raise ConfigurationError(
            f"the head of this {backbone.model.config.model_type} has no {hidden} weights and a "
            'bias for each class, which class sums need; set training.head_release = "average"'
        )


def release_sums(
    features: torch.Tensor,
    table: Table,
    head: Centred,
    *,
    records: int,
    noise_multiplier: float,
    noise: NoiseSource,
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Release sums of features and numbers of records by class, one Gaussian mechanism for all.

    Args:
        features: (rows, in_features) what the head's end sees under the frozen model; centred by
            public constants, then scaled to norm 1, each by itself.
        table: The rows: their labels, and their units where the job protects any.
        head: The end of a head, whose classes and centre are public.
        records: What all clients' sums are over, see `upload_of`.
        noise_multiplier: Of the Gaussian mechanism.
        noise: Where the noise comes from.

    Returns:
        (classes * (in_features + 1),) as it stands in the layout.
    """
    assert table.labels is not None
    joint = class_sums(
        (features - head.mean).double().cpu().numpy(),
        table.labels,
        head.projection.out_features,
        count_share=COUNT_SHARE,
        noise_multiplier=noise_multiplier,
        noise=noise,
        units=table.units,
    )
    return upload_of(joint, records)
