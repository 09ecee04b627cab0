"""`spillway replay`: decides a decision log again, with the same policy or another one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from spillway.cli import shadowing

if TYPE_CHECKING:
    from spillway.router.decision_log import LoggedDecision
    from spillway.wire.decisions import DecisionBody, DecisionRecord

CHANGES_LISTED = 10
EXIT_CHANGED = 1


def replay(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A file of serve --decision-log.")],
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The configuration of the router that wrote it."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another policy. Default: that of the configuration."),
    ] = None,
    shadow: Annotated[
        bool,
        typer.Option("--shadow", help="Decide nothing: show what the shadow in the log decided."),
    ] = False,
    happened: shadowing.Happened = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the counts as JSON.")
    ] = None,
) -> None:
    """Decide every line of a decision log again and say what comes out differently.

    Each line holds the whole view that the decision was made on, so the same
    policy must decide the same: if it does not, the exit status is 1. With
    --policy the differences are the answer: what the other one would have done.
    With --shadow nothing is decided and no configuration needed: the log of a
    router with a shadow policy holds both decisions. Only single decisions are
    compared; what they would have led to is for spillway simulate.

    [bold]Examples[/bold]
      spillway replay build/decisions.jsonl --config cluster.yaml
      spillway replay build/decisions.jsonl --config cluster.yaml --policy least-loaded
      spillway replay build/decisions.jsonl --shadow --happened build/router.log
    """
    from spillway.core.errors import ConfigError
    from spillway.report.shadow import read_happened

    ttfts_s = read_happened(happened) if happened is not None else {}
    if shadow:
        if policy is not None:
            raise ConfigError("--shadow reads decisions and makes none; leave --policy out")
        shadowing.show_logged(log, ttfts_s, json_file)
        return
    if config is None:
        raise ConfigError("--config is missing: the file of the router that wrote the log")
    _decide_again(log, config, policy, ttfts_s, json_file)


def _decide_again(
    log: Path, config: Path, policy: str | None, ttfts_s: dict[str, float], json_file: Path | None
) -> None:
    """Decide the log again, show what differs, and what that means for what happened, if known."""
    from spillway.cli.output import note
    from spillway.core.policies import build_policy
    from spillway.report.shadow import compare_shadow, print_shadow
    from spillway.wire.config import load_config

    read = load_config(config)
    specs = {node.spec.node_id: node.spec for node in read.build_nodes()}
    own = policy is None
    name, options = (policy, {}) if policy is not None else (read.policy.name, read.policy.options)
    chosen = build_policy(name, options)
    found = compare(log, chosen, specs, keep=bool(ttfts_s))
    for line in found.lines(chosen.name):
        print(line)
    beside = compare_shadow(found.records, ttfts_s)
    if beside is not None:
        print()
        print_shadow(beside)
    if json_file is not None:
        found.write(json_file, chosen.name)
    if own and found.decisions_changed:
        note("the same policy decided otherwise: is it the same configuration and version?")
        raise typer.Exit(EXIT_CHANGED)


class Compared(NamedTuple):
    """What a replay found. changes: (before, after) as route and reason, with their number.

    decisions_unknown: lines that were logged without their view.
    records: every decision with that of `policy` as its shadow, if they were to be kept.
    """

    decisions_same: int
    decisions_changed: int
    decisions_unknown: int
    changes: Counter[tuple[str, str]]
    examples: dict[tuple[str, str], str]
    records: list[DecisionRecord]

    def lines(self, policy: str) -> list[str]:
        """Return the findings for a person."""
        total = self.decisions_same + self.decisions_changed
        lines = [
            f"{total:,} decisions replayed with {policy}: "
            f"{self.decisions_changed:,} come out otherwise"
        ]
        for change, number in self.changes.most_common(CHANGES_LISTED):
            before, after = change
            lines.append(
                f"  {number:>7,}  {before} -> {after}, for instance {self.examples[change]}"
            )
        if len(self.changes) > CHANGES_LISTED:
            lines.append(f"  and {len(self.changes) - CHANGES_LISTED} more kinds of change")
        if self.decisions_unknown:
            lines.append(f"{self.decisions_unknown:,} lines hold no view and could not be replayed")
        return lines

    def write(self, path: Path, policy: str) -> None:
        """Write the findings as JSON. Raises ConfigError."""
        import msgspec

        from spillway.core.errors import ConfigError

        content: dict[str, Any] = {
            "schema_version": 1,
            "policy": policy,
            "same": self.decisions_same,
            "changed": self.decisions_changed,
            "without_view": self.decisions_unknown,
            "changes": [
                {"before": before, "after": after, "count": number, "example": self.examples[key]}
                for key, number in self.changes.most_common()
                for before, after in [key]
            ],
        }
        try:
            path.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
        except OSError as error:
            raise ConfigError(f"--json {path}: cannot be written: {error.strerror}") from None


def compare(path: Path, policy: Any, specs: dict[str, Any], *, keep: bool = False) -> Compared:
    """Return how `policy` decides each line of a log. Raises ConfigError, naming the line."""
    from msgspec.structs import replace

    from spillway.cli.output import progress
    from spillway.core.errors import ConfigError
    from spillway.wire.decisions import ShadowRecord

    same = unknown = 0
    changes: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    records: list[DecisionRecord] = []
    lines = _read(path)
    with progress("replay", len(lines)) as advance:
        for number, line in enumerate(lines, start=1):
            logged = _decode(path, number, line)
            if logged.cluster is None:
                unknown += 1
                continue
            try:
                now = logged.replay(policy, specs)
            except KeyError as error:
                raise ConfigError(
                    f"{path}, line {number}: node {error} is not in the configuration"
                ) from None
            before = logged.logged.decision
            if keep:
                shadow = ShadowRecord(policy=policy.name, decision=now)
                records.append(replace(logged.logged, shadow=shadow))
            if _choice(now) == _choice(before):
                same += 1
            else:
                change = (_words(before), _words(now))
                changes[change] += 1
                examples.setdefault(change, logged.logged.request.request_id)
            if number % 500 == 0:
                advance(number, "")
    return Compared(same, sum(changes.values()), unknown, changes, examples, records)


def _read(path: Path) -> list[bytes]:
    from spillway.core.errors import ConfigError

    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _decode(path: Path, number: int, line: bytes) -> LoggedDecision:
    import msgspec

    from spillway.core.errors import ConfigError
    from spillway.router.decision_log import decode_line

    try:
        return decode_line(line)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}, line {number}: no decision: {error}") from None


def _choice(decision: DecisionBody) -> tuple[object, ...]:
    return (
        decision.route,
        decision.reason,
        decision.prefill_node_id,
        decision.decode_node_id,
        decision.plan,
    )


def _words(decision: DecisionBody) -> str:
    nodes = "+".join(filter(None, (decision.prefill_node_id, decision.decode_node_id)))
    return f"{decision.route} {nodes} ({decision.reason})"
