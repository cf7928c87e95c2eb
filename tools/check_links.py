"""Do the book's links to other sites still answer? Needs a network; run it now and then, not at
every build.

python tools/check_links.py _build/html
"""

import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.check_html import Page, is_external  # noqa: E402

ATTEMPTS = 3
SECONDS = 30
# These answers come from sites that turn programs away; a reader with a browser gets through.
NOT_FOR_PROGRAMS = {401, 403, 405, 418, 429, 503, 999}


def external_links(root: Path) -> dict[str, str]:
    """Address without its anchor -> the first page that links to it."""
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.html")):
        for address in Page(path.read_text(encoding="utf-8")).links:
            if (
                is_external(address) and "/issues/new?" not in address
            ):  # the issue button wants a log-in
                found.setdefault(address.partition("#")[0], str(path.relative_to(root)))
    return found


def failure(address: str) -> str | None:
    """Why an address does not answer, or None when it does."""
    request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (link check)"})
    reason = None
    for attempt in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(request, timeout=SECONDS):
                return None
        except urllib.error.HTTPError as error:
            if error.code in NOT_FOR_PROGRAMS:
                return None
            reason = f"HTTP {error.code}"
        except (urllib.error.URLError, TimeoutError, OSError) as error:
            reason = str(getattr(error, "reason", error))
        time.sleep(2 * attempt)
    return reason


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    links = external_links(Path(sys.argv[1]))
    if not links:
        sys.exit(f"{sys.argv[1]} holds no link to another site. Build the book first: make book")
    with ThreadPoolExecutor(8) as pool:
        reasons = dict(zip(links, pool.map(failure, links)))
    broken = [
        f"{links[address]}: {address}: {reason}" for address, reason in reasons.items() if reason
    ]
    if broken:
        sys.exit("\n".join([*broken, f"{len(broken)} of {len(links)} links do not answer"]))
    print(f"{len(links)} links to other sites answer")


if __name__ == "__main__":
    main()
