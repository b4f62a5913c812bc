"""The README's example runs as printed, and SPEC.md's byte-length formulas are the code's."""

import re
from pathlib import Path

import pytest
from harness import World, flat_plan, nested_plan

FOLDER = Path(__file__).resolve().parents[2] / "secagg"


def test_the_readme_example_runs():
    blocks = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    exec(compile("\n".join(blocks), "README.md", "exec"), {})


def test_the_attacks_of_the_specification_are_those_that_are_carried_out():
    section = (FOLDER / "SPEC.md").read_text().split("## 13. Attacks")[1]
    attacks = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert len(attacks) == len(set(attacks)) == 20
    text = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    tests = re.findall(r"^def test_(\w+)", text, re.MULTILINE)
    for attack in attacks:
        assert any(re.match(rf"(\w+_and_)?{attack}_", test) for test in tests), attack


def array(k):
    return 1 if k < 16 else 3


def blob(z):
    return 2 if z < 256 else 3 if z < 65536 else 5


@pytest.mark.parametrize(
    "plan", [nested_plan(), flat_plan(n=17, length=33), flat_plan(n=4, length=20_000)]
)
def test_message_lengths_follow_the_formulas(plan):
    run = World.of(plan).run({"masked": ["c01"]}) if len(plan.cohort) > 4 else World.of(plan).run()
    cohort, survivors = (
        run.server_states["adverts"].cohort,
        run.server_states["survivors"].survivors,
    )
    for name, stage_sizes in (
        (n, {s: len(run.sent[s][n]) for s in run.sent}) for n in run.sent["reveal"]
    ):
        s, v, h = len(name), len(plan.nodes_of(name)), len(cohort.adverts)
        box, body = 28 + 66 * (v + 1), 4 * plan.width_of(name)
        opened = sum(sum(cohort.opened_slots(d, survivors)) for d in cohort.adverts)
        slots = sum(cohort.slots(d) for d in cohort.adverts)
        reveal = 66 * opened + 32 * (slots - opened)
        assert stage_sizes == {
            "advert": 64 + 111 + s + array(v) + 34 * v,
            "shares": 32 + 43 + s + array(h) + 34 * h + array(h - 1) + (h - 1) * (blob(box) + box),
            "masked": -(-(2 + 64 + 109 + s) // 16) * 16 + body,
            "vote": 64 + 75 + s,
            "reveal": 32 + 43 + s + blob(reveal) + reveal,
        }
