"""Config, Secret and OSImage: what can be put on a node besides apps."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from edgewise.model.documents.inventory import ApiVersion
from edgewise.model.documents.words import (
    AbsolutePath,
    Duration,
    FileMode,
    Metadata,
    Misfit,
    Name,
    PlatformWord,
    Sha256,
    SignalName,
    Strict,
    Text,
    Version,
)

AGE_HEADER = "-----BEGIN AGE ENCRYPTED FILE-----"


class FileSpec(Strict, frozen=True, kw_only=True):
    """One file that must be on the node with just this text."""

    path: AbsolutePath
    """Absolute. May be a template."""
    content: Annotated[str, Meta(max_length=1 << 20)]
    """The text. May be a template."""
    mode: FileMode = "0644"
    """Permission bits, octal, in quotes."""
    owner: str = ""
    """``user`` or ``user:group``; left out, the agent's own."""
    template: bool = True
    """``false``: take path and content as they are."""


class OnChangeSpec(Strict, frozen=True, kw_only=True):
    """What happens when a file below one of ``paths`` changed."""

    paths: Annotated[tuple[AbsolutePath, ...], Meta(min_length=1)]
    """Files, or directories (everything below)."""
    action: Literal["restart", "signal", "run"]
    """Restart or signal ``app``, or run ``command``."""
    app: Name | None = None
    """The App of the fleet, for ``restart`` and ``signal``."""
    unit: Text | None = None
    """A systemd unit instead of an App. Accepted, not yet acted on."""
    signal: SignalName = "SIGHUP"
    """For ``signal``."""
    command: tuple[str, ...] = ()
    """For ``run``: program and arguments; no shell."""

    def __post_init__(self) -> None:
        if self.action == "run" and not self.command:
            raise Misfit("action", "action run needs command")
        if self.action != "run" and (self.app is None) == (self.unit is None):
            raise Misfit("action", f"action {self.action} needs app (or unit, not both)")


class ConfigSpec(Strict, frozen=True, kw_only=True):
    """Files with drift correction."""

    files: Annotated[tuple[FileSpec, ...], Meta(min_length=1, max_length=1000)]
    """The files."""
    on_change: tuple[OnChangeSpec, ...] = ()
    """What to do after a change, at most once for each entry."""

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for file in self.files:
            if file.path in seen:
                raise Misfit("files", f"path {file.path!r} occurs twice")
            seen.add(file.path)


class Config(Strict, frozen=True, kw_only=True, tag_field="kind", tag="Config"):
    """Files that are kept in place."""

    api_version: ApiVersion
    metadata: Metadata
    spec: ConfigSpec


class SecretSpec(Strict, frozen=True, kw_only=True):
    """Ciphertext; only the nodes of the fleet can read it."""

    encryption: Literal["age", "sops"]
    """``age``: every value is an armoured age file for the workspace's key. ``sops``: accepted,
    not yet acted on."""
    mount_path: AbsolutePath
    """Directory on the node, in memory; one file for each key of ``data``."""
    data: Annotated[
        dict[Annotated[str, Meta(pattern="^[A-Za-z0-9._-]{1,253}$(?!\n)")], str],
        Meta(min_length=1, max_length=100),
    ]
    """File name to ciphertext."""
    mode: FileMode = "0400"
    """Permission bits, octal, in quotes."""
    owner: str = ""
    """``user`` or ``user:group``; left out, the agent's own."""

    def __post_init__(self) -> None:
        for key, value in self.data.items():
            if key in (".", ".."):
                raise Misfit("data", f"{key!r} is not a file name")
            if self.encryption == "age" and not value.lstrip().startswith(AGE_HEADER):
                # The value is not repeated: it may be a plaintext that got here by mistake.
                raise Misfit(
                    "data", f"{key}: not an armoured age file (it must start with {AGE_HEADER})"
                )


class Secret(Strict, frozen=True, kw_only=True, tag_field="kind", tag="Secret"):
    """A secret as ciphertext."""

    api_version: ApiVersion
    metadata: Metadata
    spec: SecretSpec


class ImageVariant(Strict, frozen=True, kw_only=True):
    """The image for one platform."""

    platform: PlatformWord
    """``linux/amd64``."""
    ref: Text
    """Where the image is."""
    digest: Sha256
    """What it must be."""


class ImageChannel(Strict, frozen=True, kw_only=True):
    """A channel: the version that it now stands at."""

    version: Version
    """For people."""
    variants: Annotated[tuple[ImageVariant, ...], Meta(min_length=1)]
    """One for each platform."""


class Verity(Strict, frozen=True, kw_only=True):
    """dm-verity."""

    required: bool = True
    """Refuse an image without it."""


class Boot(Strict, frozen=True, kw_only=True):
    """When a freshly booted image counts as good."""

    max_attempts: Annotated[int, Meta(ge=1, le=10)] = 3
    """Boots before the old slot comes back."""
    health_timeout: Duration = "10m"
    """Time for the node to become healthy after the boot."""


class Requires(Strict, frozen=True, kw_only=True):
    """What the machine must have."""

    secure_boot: bool = False
    """UEFI Secure Boot is on."""
    tpm: bool = False
    """A TPM 2.0."""


class OSImageSpec(Strict, frozen=True, kw_only=True):
    """An image in channels."""

    channels: Annotated[dict[Name, ImageChannel], Meta(min_length=1)]
    """Channel name to what it stands at."""
    verity: Verity = Verity()
    """dm-verity."""
    boot: Boot = Boot()
    """When a boot counts as good."""
    requires: Requires = Requires()
    """What the machine must have."""


class OSImage(Strict, frozen=True, kw_only=True, tag_field="kind", tag="OSImage"):
    """An operating system image. Accepted, not yet acted on."""

    api_version: ApiVersion
    metadata: Metadata
    spec: OSImageSpec
