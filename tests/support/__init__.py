"""What tests import: the golden model, tiny weights and stand-ins; ComfyUI in this process, as a server, in a browser.

The only package below `tests/`. The other folders hold test modules alone, which import from here and never from each
other. Core has modules named `server`, `nodes` and `utils`: they take precedence over a plain folder of that name, but
not over a package.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
