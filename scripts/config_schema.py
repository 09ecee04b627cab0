"""Write the JSON schema of the configuration file, for editors that check YAML by one.

.venv/bin/python scripts/config_schema.py
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from spillway.wire.config import ClusterConfig

TARGET = Path(__file__).resolve().parents[1] / "deploy" / "config.schema.json"


def text() -> str:
    """Return the whole file."""
    return json.dumps(msgspec.json.schema(ClusterConfig), indent=2) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
    print(f"wrote {TARGET.name}")
