"""`spillway version | policies | profiles`: what this installation has to offer."""

from __future__ import annotations

import typer


def version() -> None:
    """Show the version."""
    from spillway import __version__

    typer.echo(f"spillway {__version__}")


def policies() -> None:
    """List the policies: how each decides where a prompt runs, and its switches.

    Set switches behind the name, wherever a policy is named:
    [bold]--policy headroom:pressure=off,deflections_max=1[/bold]

    Rules, formulas and sources are in docs/policies.md.
    """
    from spillway.core.policies import POLICIES, option_text, policy_options

    for name, policy in POLICIES.items():
        about = (policy.__doc__ or "").partition("\n")[0]
        switches = ",".join(
            f"{key}={option_text(value)}" for key, value in policy_options(policy).items()
        )
        typer.echo(f"{typer.style(name, bold=True)}\n    {about}")
        if switches:
            typer.echo(f"    switches: {switches}")


def profiles() -> None:
    """List the built-in latency profiles: model, GPU, fit, KV room.

    A profile is GPU time alone unless it says otherwise. A derived one was
    computed from the model's configuration and never measured.
    """
    from spillway.wire.profile import DEFAULT_PROFILE, builtin_names, load_profile_file

    for name in builtin_names():
        profile = load_profile_file(name)
        origin = profile.provenance
        gpus = f"{origin.tensor_parallel} x " if origin.tensor_parallel > 1 else ""
        fit = profile.fit_error
        error = f"fitted within {fit.median_frac:.1%} (median)" if fit else "fit not measured"
        engine = f"{origin.engine} {origin.engine_version}"
        if profile.derived_error_frac:
            error, engine = f"within ±{profile.derived_error_frac:.0%}", "derived, not measured"
        host = f"; host {profile.host_overhead_s * 1e3:g} ms" if profile.host_overhead_s else ""
        default = "  (default)" if name == DEFAULT_PROFILE else ""
        typer.echo(f"{typer.style(name, bold=True)}{default}")
        typer.echo(f"    {origin.model} on {gpus}{origin.gpu}, {engine}")
        typer.echo(
            f"    {error}{host}; KV {profile.kv_bytes_per_token:,} B/token, "
            f"room {profile.kv_capacity_tokens:,} tokens"
        )
