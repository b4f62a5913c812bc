"""The ClientApp of a stock SuperNode: brings what came to the site's agent and back, no more.

It runs in a new process for each message, as whoever runs the SuperNode. It sees signed requests
and masked replies. The agent's socket is named by the SuperNode's own configuration:
``flower-supernode --node-config 'agent="/run/fedtree/agent.sock"'``.
"""

import logging
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedtree_secure.flower.records import WHO, parcel_of, reply_content
from fedtree_secure.site.socket_link import Asked, ask

log = logging.getLogger("fedtree_secure.flower")
PATIENCE_S = 3600.0  # the server's deadline decides; a site may compute for long
app = ClientApp()


@app.query()  # type: ignore[untyped-decorator]
def forward(message: Message, context: Context) -> Message:
    """Ask the agent; silence where there is none, for Flower would send an error's text on."""
    return Message(reply_content(_asked(message, context)), reply_to=message)


def _asked(message: Message, context: Context) -> bytes | None:
    parcel = parcel_of(message)
    if parcel is None:
        return None
    try:
        path = Path(str(context.node_config["agent"]))
        run = "" if parcel.stage == WHO else parcel.run
        return ask(path, Asked(run, str(context.node_id), parcel.data), PATIENCE_S)
    except (OSError, ValueError, KeyError) as error:
        log.warning("the site's agent does not answer: %s", type(error).__name__)
        return None
