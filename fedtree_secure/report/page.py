"""The report for people, ``report.html``: one page that needs nothing else, prints, and runs no
script.
"""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from fedtree_secure.report import drawings
from fedtree_secure.report.audit_files import FAIL, INCONCLUSIVE, PASS
from fedtree_secure.report.hazards import hazards_of, limits_of
from fedtree_secure.report.statement import ClientStatement, Statement

DRAWN = 24  # burn-downs; the table has everybody
_CLASSES = {PASS: "good", FAIL: "bad", INCONCLUSIVE: "doubt"}


def render(statement: Statement) -> str:
    """Return the page."""
    environment = Environment(
        loader=PackageLoader("fedtree_secure.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "sentence": _sentence, "breakable": _breakable}
    said, kind = _audits(statement)
    clients = statement.clients
    opened = [
        len(group)
        for layer in statement.layers
        for group, is_open in zip(layer.groups, layer.opened, strict=True)
        if is_open
    ]
    return environment.get_template("report.html.j2").render(
        s=statement,
        kept=sum(_kept(client) for client in clients),
        smallest=min(opened, default=None),
        audits_said=said,
        audit_class=kind,
        macro=all("macro_f1" in c.metric for c in clients if c.metric)
        and any(c.metric for c in clients),
        metric_name=next((c.metric["name"] for c in clients if c.metric), "metric"),
        drawn=sorted(clients, key=lambda c: c.allowed - c.epsilon)[:DRAWN]
        if len(clients) > DRAWN
        else clients,
        burn=_burn,
        # every text in a drawing is escaped where it is put in
        tree=Markup(drawings.tree(statement)),  # noqa: S704
        verdicts=_CLASSES,
        found={audit.name: audit.verdict for audit in statement.audits},
        hazards=hazards_of(statement.unit, shared=statement.shared is not None),
        limits=limits_of(statement.unit, shared=statement.shared is not None),
        widest=max((c.honest_others for c in clients), key=len, default=()),
    )


def _kept(client: ClientStatement) -> bool:
    own = client.own_epsilon is None or client.own_epsilon <= (client.own_allowed or 0.0)
    return own and client.epsilon <= client.allowed


def _burn(client: ClientStatement) -> Markup:
    return Markup(drawings.burn_down(client))  # noqa: S704 - escaped where it is put in


def _audits(statement: Statement) -> tuple[str, str]:
    verdicts = [audit.verdict for audit in statement.audits]
    if not verdicts:
        return "none were run", "doubt"
    kind = next(v for v in (FAIL, INCONCLUSIVE, PASS) if v in verdicts)
    return f"{verdicts.count(PASS)} of {len(verdicts)}", _CLASSES[kind]


def _figure(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.3f}"


def _breakable(name: str) -> Markup:
    """Let a long name break behind its underscores."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
