"""Where the repository lives stands in pyproject.toml; badges, install cells and links repeat it.

python tools/address.py           list every mention that differs python tools/address.py --write
rewrite them (for a fork: change pyproject.toml, then run this and `make sync`)
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = ("*.py", "*.ipynb", "*.md", "*.yml", "*.toml", "*.bib")
FOLDERS = (".", ".github/workflows", "book", "notebooks", "ctrace", "tools")
# github.com/OWNER/ctrace and colab's github/OWNER/ctrace; OWNER.github.io/ctrace for the published
# book
MENTION = re.compile(
    r"(?P<before>github(?:\.com)?/)(?P<owner>[\w-]+)(?=/ctrace\b)|(?P<pages>[\w-]+)(?=\.github\.io/ctrace\b)"
)


def owner(root: Path) -> str:
    url = tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    match = re.fullmatch(r"https://github\.com/([\w-]+)/ctrace", url)
    if match is None:
        sys.exit(
            f"pyproject.toml: project.urls.Repository is '{url}', expected https://github.com/OWNER/ctrace"
        )
    return match[1]


def files(root: Path) -> list[Path]:
    found = (
        path for folder in FOLDERS for pattern in TEXT for path in (root / folder).glob(pattern)
    )
    return sorted(set(found) - {root / "pyproject.toml", root / "tools" / "address.py"})


def rewritten(text: str, name: str) -> str:
    return MENTION.sub(lambda match: name if match["pages"] else match["before"] + name, text)


def wrong_mentions(root: Path) -> list[str]:
    """'file:line: text' for every mention of another owner."""
    name = owner(root)
    return [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in files(root)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if rewritten(line, name) != line
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    if not parser.parse_args().write:
        sys.exit("\n".join(wrong_mentions(ROOT)) or None)
    for path in files(ROOT):
        before = path.read_text(encoding="utf-8")
        after = rewritten(before, owner(ROOT))
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
