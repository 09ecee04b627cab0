"""A latency profile on disk: the coefficients of one model on one GPU, and where they come from.

Built-in profiles lie beside this module in `profiles/`; a file of one's own has the same form. What
the decisions need is `core.latency.LatencyProfile`; the rest is there so that a reader can judge
how far to trust it: source, fit error, and the range in which the fit was made.
"""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import Annotated

import msgspec

from spillway.core.errors import ConfigError
from spillway.core.latency import LatencyProfile
from spillway.wire.codec import convert, did_you_mean, in_file, parse_json
from spillway.wire.gpus import GPUS
from spillway.wire.modelshape import ModelShape, kv_bytes_per_token
from spillway.wire.profilefloor import VALUE_BYTES, floor_faults, floor_of

PROFILE_SCHEMA_VERSION = 1
DEFAULT_PROFILE = "llama-3.1-8b-a100"

DERIVED = "derived"  # in the name of every profile that nobody measured
SIXTEEN_BIT = ("bfloat16", "float16")

_BUILTIN_DIR = Path(__file__).parent / "profiles"

Amount = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class Coefficients(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The step-time law of `core.latency`, in seconds per step, token, KV token, token pair
    and sequence in decode.

    token_s: slope added at each hinge; negative where the step time flattens.
    """

    step_base_s: Amount
    token_hinges: tuple[Count, ...]
    token_s: tuple[float, ...]
    kv_token_s: Amount
    token_pair_s: Amount
    decode_seq_s: Amount = 0.0


class FitError(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Sizes of the law's relative errors, 0.01 being 1 %.

    held_out: they are of points that the law was not fitted to.
    mean_frac: the mean absolute percentage error.   noise_frac: the same of repeats of one step
    among each other, which no law can be expected to beat. None: not known.
    """

    median_frac: Amount
    p95_frac: Amount
    max_frac: Amount
    mean_frac: Amount | None = None
    noise_frac: Amount | None = None
    held_out: bool = False


class Validity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The largest step the fit has seen; beyond it the law extrapolates.

    context_tokens_max: of one sequence, before the chunk.   kv_tokens_max: of the whole batch.
    """

    decode_seqs_max: AtLeastOne
    kv_tokens_max: AtLeastOne
    chunk_tokens_max: AtLeastOne
    context_tokens_max: AtLeastOne


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who says so, for what, and when. `date`: ISO day on which the numbers were obtained."""

    source: str
    model: str
    gpu: str
    tensor_parallel: AtLeastOne
    engine: str
    engine_version: str
    dtype: str
    date: str
    notes: str = ""


class ProfileFile(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One profile file.

    kv_bytes_per_token: over all GPUs of the tensor-parallel group; what a transfer moves.
    kv_capacity_tokens: KV room of one node unless its configuration says otherwise; 0 is unknown.
    fit_error, validity: None when nobody measured them.
    host_overhead_s: what a step costs beside the GPU (scheduling, sampling), on top of the
        coefficients; 0 where they hold it already, or nobody knows.
    model: the configuration that kv_bytes_per_token and the floors follow from; None when unknown.
    derived_error_frac: above 0 for a profile that was derived and not measured: by how much it may
        well be wrong. Such a profile has `derived` in its name.
    below_floor_because: why coefficients may be faster than the hardware is at its peak; without
        it such a profile is refused.
    """

    schema_version: int
    name: Annotated[str, msgspec.Meta(min_length=1)]
    coefficients: Coefficients
    kv_bytes_per_token: AtLeastOne
    provenance: Provenance
    kv_capacity_tokens: Count = 0
    fit_error: FitError | None = None
    validity: Validity | None = None
    host_overhead_s: Amount = 0.0
    model: ModelShape | None = None
    derived_error_frac: Amount = 0.0
    below_floor_because: str = ""

    def caveats(self) -> tuple[str, ...]:
        """Return what every report on this profile has to say, a sentence each."""
        said = []
        if self.derived_error_frac:
            error = f"±{self.derived_error_frac:.0%}"
            said.append(
                f"profile {self.name}: derived from first principles ({error}), not measured"
            )
        if self.below_floor_because:
            said.append(
                f"profile {self.name}: faster than its hardware at its peak, "
                f"because: {self.below_floor_because}"
            )
        return tuple(said)

    def faults(self) -> list[str]:
        """Return what of it cannot be true, a sentence each.

        The floors are checked for 16-bit weights on a known GPU with a known model.
        """
        origin = self.provenance
        found = []
        if bool(self.derived_error_frac) != (DERIVED in self.name):
            found.append(f"name: {DERIVED!r} is for profiles with derived_error_frac, and for all")
        if self.model is None or origin.dtype not in SIXTEEN_BIT:
            return found
        kv_bytes = kv_bytes_per_token(self.model, VALUE_BYTES)
        if self.kv_bytes_per_token != kv_bytes:
            found.append(
                f"kv_bytes_per_token: is {self.kv_bytes_per_token}, but follows from model as "
                f"{kv_bytes}"
            )
        if origin.gpu in GPUS and not self.below_floor_because:
            floor = floor_of(self.model, GPUS[origin.gpu], origin.tensor_parallel)
            hint = "; if that is meant, say why in below_floor_because"
            found += [
                f"coefficients: {fault}{hint}" for fault in floor_faults(self.latency(), floor)
            ]
        return found

    def latency(self) -> LatencyProfile:
        """Return the part that decisions use. Raises ConfigError on coefficients without sense."""
        law = self.coefficients
        return LatencyProfile(
            name=self.name,
            step_base_s=law.step_base_s + self.host_overhead_s,
            token_hinges=law.token_hinges,
            token_s=law.token_s,
            decode_seq_s=law.decode_seq_s,
            kv_token_s=law.kv_token_s,
            token_pair_s=law.token_pair_s,
            kv_bytes_per_token=self.kv_bytes_per_token,
        )


def builtin_names() -> tuple[str, ...]:
    """Return the names of the profiles that come with the package, sorted."""
    return tuple(sorted(path.stem for path in _BUILTIN_DIR.glob("*.json")))


def load_profile(name_or_path: str) -> LatencyProfile:
    """Return the latency law of a built-in name or a JSON file. Raises ConfigError."""
    return load_profile_file(name_or_path).latency()


def load_profile_file(name_or_path: str) -> ProfileFile:
    """Return a whole profile, of a built-in name or a JSON file, checked.

    A built-in name wins over a file of that name; write `./name` for the file.
    Raises ConfigError naming the file, the key and what is allowed.
    """
    path = _resolve(name_or_path)
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # a name with a NUL in it is a ValueError
        raise ConfigError(
            f"{path!s:.200}: cannot read the profile: {getattr(error, 'strerror', error)}; "
            f"built-in profiles: {', '.join(builtin_names())}"
        ) from None
    raw = parse_json(data, str(path))
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version != PROFILE_SCHEMA_VERSION:
        # Said before anything else: a later version may well have keys that are unknown here.
        raise ConfigError(
            f"{path}: schema_version: is {version}; "
            f"this version of spillway reads {PROFILE_SCHEMA_VERSION}"
        )
    profile = convert(raw, ProfileFile, in_file(str(path)))
    try:
        profile.latency()
    except ConfigError as error:
        raise ConfigError(f"{path}: coefficients: {error}") from None
    for fault in profile.faults():
        raise ConfigError(f"{path}: {fault}")
    return profile


def write_profile_file(path: str | Path, profile: ProfileFile) -> None:
    """Write a profile so that a person can read it and `load_profile_file` can load it."""
    text = msgspec.json.format(msgspec.json.encode(profile), indent=2)
    Path(path).write_bytes(text + b"\n")


def _resolve(name_or_path: str) -> Path:
    if name_or_path in builtin_names():
        return _BUILTIN_DIR / f"{name_or_path}.json"
    path = Path(name_or_path)
    looks_like_file = path.suffix == ".json" or len(path.parts) > 1 or os.path.isfile(path)
    if looks_like_file:
        return path
    raise ConfigError(
        f"profile {name_or_path!r}: not a built-in profile and not a file; "
        f"{did_you_mean(name_or_path, builtin_names())}"
    )
