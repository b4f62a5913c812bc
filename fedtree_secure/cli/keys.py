"""`fedtree-secure keys`: signing keys, the cards that sites send, and the roster made of them."""

from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from fedtree_secure.cli.screen import console

Labels = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]
keys_app = cyclopts.App(name="keys", help="Signing keys of sites and servers, and the roster.")


@keys_app.command
def new(path: Path) -> int:
    """Make a signing key, 0600; encrypted at rest if FEDTREE_KEY_FILE names a key. No other
    command ever makes one.

    Parameters
    ----------
    path
        File of the key; it must not exist.
    """
    from fedtree_secure.key_file import new_key
    from fedtree_secure.storage import SecretBox

    public = new_key(path, SecretBox.from_environment()).public_bytes.hex()
    _say(f"{path}: public key {public}")
    return 0


@keys_app.command
def show(path: Path, *, name: str, labels: Labels = (), out: Path | None = None) -> int:
    """Show the card of a key: name, public key and labels, signed by it. It holds no secret.

    Parameters
    ----------
    path
        File of the key.
    name
        Of the site, as the roster will name it.
    labels
        The label set that the site declares, as in its site.toml; everybody in the federation reads
        it. Sites that declare the same one, in the same order, may share a head.
    out
        File for the card, to send to the server's operator.
    """
    import json

    from fedtree_secure.key_file import card_of, read_identity
    from fedtree_secure.storage import SecretBox

    card = card_of(name, read_identity(path, SecretBox.from_environment()), labels=labels)
    if out is not None:
        card.write(out)
    _say(json.dumps(card.to_dict(), indent=2))
    return 0


@keys_app.command
def roster(
    cards: list[Path], *, key: Path, name: str, out: Path, previous: Path | None = None
) -> int:
    """Make the first or the next version of a roster, signed by the server.

    A job that runs is bound to the version it began with. Sites take part under the new one once
    their policies name its digest, in new runs.

    Parameters
    ----------
    cards
        Files of `keys show` or `keys rotate`: sites that are new, or whose key is another now.
    key
        The server's signing key.
    name
        Of the federation.
    out
        File for the roster.
    previous
        The version before; its other sites stay.
    """
    from fedtree_secure.key_file import read_card, read_identity
    from fedtree_secure.roster_file import make_roster, read_roster
    from fedtree_secure.storage import SecretBox

    server = read_identity(key, SecretBox.from_environment())
    before = None if previous is None else read_roster(previous)
    made = make_roster(name, server, [read_card(card) for card in cards], before)
    made.write(out)
    _say(f"version {made.version} with {len(made.clients)} sites: {', '.join(made.clients)}")
    _say(f'server = "{made.server}"')
    _say(f'roster = "{made.digest}"')
    for group in made.head_groups(2):
        _say(f"{', '.join(group.members)} declare the same {group.outputs} labels")
    return 0


@keys_app.command
def rotate(old: Path, new: Path, *, name: str, labels: Labels = (), out: Path) -> int:
    """Make a new key in place of an old one; its card is signed by both.

    Keep the old key until the jobs that run under it are over: their sites are known by it. The new
    key counts from the next version of the roster on.

    Parameters
    ----------
    old
        File of the key that is in the roster.
    new
        File of the new key; it must not exist.
    name
        Of the site.
    labels
        See `keys show`; the old card's are not taken over.
    out
        File for the card, to send to the server's operator.
    """
    from fedtree_secure.key_file import card_of, new_key, read_identity
    from fedtree_secure.storage import SecretBox

    box = SecretBox.from_environment()
    before = read_identity(old, box)
    card_of(name, new_key(new, box), before, labels).write(out)
    _say(f"{new} takes the place of {old} from the roster's next version on; card: {out}")
    return 0


@keys_app.command
def revoke(name: str, *, roster: Path, key: Path, out: Path) -> int:
    """Make the roster's next version, without a site; its key is never taken again.

    Jobs that run go on under their own version until the sites' policies name the new one: from
    then on the sites refuse them. End such a job and begin another.

    Parameters
    ----------
    name
        Of the site.
    roster
        The version before.
    key
        The server's signing key.
    out
        File for the new version.
    """
    from fedtree_secure.key_file import read_identity
    from fedtree_secure.roster_file import read_roster
    from fedtree_secure.roster_file import revoke as without
    from fedtree_secure.storage import SecretBox

    made = without(read_roster(roster), read_identity(key, SecretBox.from_environment()), name)
    made.write(out)
    _say(f"version {made.version} without {name}: {', '.join(made.clients)}")
    _say(f'roster = "{made.digest}"')
    return 0


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
