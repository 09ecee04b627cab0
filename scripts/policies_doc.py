"""Write docs/policies.md from the docstrings of the policies.

    .venv/bin/python scripts/policies_doc.py

A policy's docstring is a summary line, labelled paragraphs (`Rule:    ...`, continuation lines
indented), and one entry per option (`alpha: ...`). Whatever departs from that form is an error, so
that a policy cannot be added without its rule, its inputs and its source.
"""

from __future__ import annotations

import re
import sys
from inspect import cleandoc, getmodule
from pathlib import Path
from typing import NamedTuple

from spillway.core.errors import ConfigError
from spillway.core.policies import POLICIES, PolicyClass, option_text, policy_options

TARGET = Path(__file__).resolve().parents[1] / "docs" / "policies.md"
LABELS = ("Rule", "Formula", "Inputs", "Source", "Differs", "Cost")
NEEDED = ("Rule", "Inputs", "Source")
LABEL = re.compile(r"([A-Z][a-z]+):\s+(.*)")
OPTION = re.compile(r"([a-z][a-z_]*): (.*)")

INTRODUCTION = """\
# Policies

A policy decides where each prompt runs: on a prefill node, after which its KV moves to a decode
node, or *deflected*, in chunks beside the streams of a decode node. This page is written by
`scripts/policies_doc.py` from the docstrings under `src/spillway/core/`; change those, not this.

Every policy is selected by the same text, live and in simulation: `--policy NAME`, or
`--policy NAME:SWITCH=VALUE,SWITCH=VALUE` (`headroom:pressure=off`,
`kairos-paper:sizes_tokens=512+256`), or in a configuration file by
`policy: {name: ..., options: {...}}`. `spillway policies` lists them.

## What they have in common

- A policy is pure: the same request and the same view give the same decision. What looks like
  chance is a hash of the request id.
- Some vetoes belong to no policy but to all, so that they compete on equal terms: no prompt is
  deflected to a node that is down, whose state is unknown or stale, that says it is over its
  budget, or that lacks KV room. It then goes to the prefill pool. (`kairos-paper`, which knows no
  KV limit, and `headroom:kv_admission=off` leave out the last.)
- With no usable prefill node every policy deflects where that is safe, and else answers 503.
- The decode node of a prefilled request is chosen when its KV is ready, by the state at that
  moment.
- How large chunks are is the node's affair first. An engine with the plug-in sizes every step to
  what its streams can bear, whatever the policy, and so protects them also from policies that know
  nothing of token gaps. To see those as their authors run them, on stock engines with a fixed
  chunk, simulate with `--decode-chunk-tokens 2048`. `kairos-paper`, `taichi-lite` and `colocated`
  send a schedule along, which every engine but a stock one executes literally.
- Seconds are predicted by the node's latency profile. Prefix tokens held are 0 where nothing is
  known of them.

## How far from the best possible

No policy knows the future, by construction: nothing that a policy can read holds a true output
length. What perfect knowledge of the present would be worth is a setting of the simulator, one
switch each:

| Perfect | Setting |
| --- | --- |
| step times | `--bias 1 --noise 0`, the default: nodes take the time that the router predicts |
| freshness | `--report-period-s 0.001`: no decision sees a state older than a millisecond |
| output lengths | out of a policy's reach; they matter to KV admission, as a learned quantile |

What a run with these gains over one without is what estimates and staleness cost; the rest is the
policy's own.
"""


class Entry(NamedTuple):
    """A policy's docstring in parts. labelled and options: in the order written."""

    summary: str
    labelled: dict[str, str]
    options: dict[str, str]


def read(name: str, policy: PolicyClass) -> Entry:
    """Return the parts of a docstring. Raises ConfigError that names what is missing or unknown."""
    summary, _, rest = cleandoc(policy.__doc__ or "").partition("\n")
    labelled: dict[str, str] = {}
    options: dict[str, str] = {}
    part, key = labelled, ""
    for line in filter(None, rest.splitlines()):
        if line.startswith(" "):
            if not key:
                raise ConfigError(f"{name}: {line.strip()!r} continues nothing")
            part[key] += f" {line.strip()}"
        elif (found := LABEL.fullmatch(line)) and found[1] in LABELS:
            part, key = labelled, found[1]
            part[key] = found[2]
        elif found := OPTION.fullmatch(line):
            part, key = options, found[1]
            part[key] = found[2]
        else:
            raise ConfigError(
                f"{name}: {line!r} is neither a label ({', '.join(LABELS)}) nor an option"
            )
    if lacking := [label for label in NEEDED if label not in labelled]:
        raise ConfigError(f"{name}: its docstring lacks {', '.join(lacking)}")
    if set(options) != set(policy_options(policy)):
        odd = sorted(set(options) ^ set(policy_options(policy)))
        raise ConfigError(f"{name}: described options and real ones differ: {', '.join(odd)}")
    return Entry(summary, labelled, options)


def page() -> str:
    """Return the whole of docs/policies.md."""
    entries = {name: read(name, policy) for name, policy in POLICIES.items()}
    lines = [INTRODUCTION, "## The list", "", "| Policy | What it does |", "| --- | --- |"]
    lines += [f"| [{name}](#{name}) | {entry.summary} |" for name, entry in entries.items()]
    for name, entry in entries.items():
        lines += ["", f"## {name}", "", entry.summary, ""]
        lines += [f"- **{label}:** {text}" for label, text in entry.labelled.items()]
        lines.append(f"- **Code:** `{_file(POLICIES[name])}`")
        if entry.options:
            lines += ["", "| Switch | Default | Meaning |", "| --- | --- | --- |"]
            defaults = policy_options(POLICIES[name])
            lines += [
                f"| `{key}` | `{option_text(defaults[key])}` | {text} |"
                for key, text in entry.options.items()
            ]
    return "\n".join(lines) + "\n"


def _file(policy: PolicyClass) -> str:
    module = getmodule(policy)
    assert module is not None
    return f"src/{module.__name__.replace('.', '/')}.py"


def main() -> int:
    TARGET.write_text(page(), encoding="utf-8")
    print(f"wrote {TARGET.relative_to(TARGET.parents[1])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
