"""Print `name==version` with the lowest version that pyproject.toml allows of each package: constraints for pip.

`make test-lowest` installs by them. A requirement without a lower bound is an error, so that each bound is one somebody
has tried. What only tests and releases need is left at its newest.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_OWN_TOOLS = {"dev", "docs", "release"}
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^\]]*\])?>=(?P<version>[0-9][0-9.]*)(,|;|$)")


def lowest(requirements: list[str]) -> list[str]:
    """`["torch==2.10"]` of `["torch>=2.10"]`.

    Raises:
        ValueError: some have no lower bound, all of which it names.
    """
    found = {text: _REQUIREMENT.match(text.replace(" ", "")) for text in requirements}
    without = [text for text, match in found.items() if match is None]
    if without:
        raise ValueError(f"no lower bound in {', '.join(without)}: write name>=version, with a version that was tried.")
    return [f"{match['name']}=={match['version']}" for match in found.values() if match is not None]


def main() -> int:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"]]
    requirements += [text for name, extra in extras.items() if name not in _OWN_TOOLS for text in extra]
    try:
        print(*lowest(requirements), sep="\n")
    except ValueError as error:
        print(f"pyproject.toml: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
