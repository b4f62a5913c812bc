"""What several jobs of one process may share: the model, and values computed from rows with it."""

from dataclasses import dataclass, field

from fedtree_dp import PrivacyUnit
from fedtree_secure.config import Job
from fedtree_secure.model.backbone import Backbone, Observation


@dataclass
class Shared:
    """A loaded model and caches, by client.

    A cache holds what the frozen model with its public initial experts makes of a client's rows; it
    never leaves this process. Jobs that share must have the same backbone, adapters and seed.
    """

    _backbone: Backbone | None = None
    _caches: dict[tuple[str, PrivacyUnit | None], dict[str, Observation]] = field(
        default_factory=dict
    )

    def backbone(self, job: Job) -> Backbone:
        """Return the model, loaded when first asked for."""
        if self._backbone is None:
            self._backbone = Backbone(job)
        return self._backbone

    def cache_of(self, client: str, unit: PrivacyUnit | None = None) -> dict[str, Observation]:
        """Return the cache of a client; with another unit other rows may be trained on."""
        return self._caches.setdefault((client, unit), {})

    def without_caches(self) -> "Shared":
        """Return the same model for other rows."""
        return Shared(self._backbone)
