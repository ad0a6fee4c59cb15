"""The documentation has every public name, once."""

import re
from collections import Counter
from pathlib import Path

import measure_xent as mx

PAGES = Path(__file__).parents[1] / "docs" / "pages"


def test_every_public_name_is_in_the_api():
    text = "".join(path.read_text(encoding="utf-8") for path in (PAGES / "api").glob("*.md"))
    shown = Counter(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    modules = {"losses", "generators"}
    public = {f"measure_xent.{name}" for name in set(mx.__all__) - modules}
    public |= {f"measure_xent.losses.{name}" for name in mx.losses.__all__} | {"measure_xent.testing.check_measure"}
    generators = {name for name in vars(mx.generators) if f"measure_xent.generators.{name}" in shown}
    assert {n for n, g in vars(mx.generators).items() if isinstance(g, mx.generators.Generator)} <= generators
    assert shown == Counter(public) + Counter(f"measure_xent.generators.{name}" for name in generators)
