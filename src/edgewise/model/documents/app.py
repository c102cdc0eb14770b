"""App: something that runs. ``type: process`` is acted on; the other types are checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from edgewise.model.documents.identity import AppIdentity
from edgewise.model.documents.ingress import IngressRule
from edgewise.model.documents.inventory import ApiVersion
from edgewise.model.documents.words import (
    Cpu,
    Duration,
    EnvName,
    Metadata,
    Misfit,
    Name,
    PlatformWord,
    Port,
    SignalName,
    Size,
    Strict,
    Text,
    Version,
)

Words = Annotated[tuple[str, ...], Meta(min_length=1, max_length=256)]
Seconds = Annotated[float, Meta(gt=0, le=86400)]
Times = Annotated[int, Meta(ge=1, le=1000)]


class ArtifactRef(Strict, frozen=True, kw_only=True):
    """A published artifact: `edgewise artifact publish`."""

    ref: Name
    """Its name."""
    version: Version
    """Its version."""


class HttpGet(Strict, frozen=True, kw_only=True):
    """GET; 200 to 399 is healthy."""

    port: Port
    """Port number."""
    path: Annotated[str, Meta(pattern="^/", extra={"like": "/healthz"})] = "/"
    """Path and query."""
    host: Text = "127.0.0.1"
    """Address to connect to."""


class TcpSocket(Strict, frozen=True, kw_only=True):
    """A connection that is accepted is healthy."""

    port: Port
    """Port number."""
    host: Text = "127.0.0.1"
    """Address to connect to."""


class Exec(Strict, frozen=True, kw_only=True):
    """A command in the app's tree; exit 0 is healthy."""

    command: Words
    """Program and arguments; no shell."""


class ProbeSpec(Strict, frozen=True, kw_only=True):
    """One check, as Kubernetes writes it: exactly one of httpGet, tcpSocket, exec."""

    http_get: HttpGet | None = None
    """GET; 200 to 399 is healthy."""
    tcp_socket: TcpSocket | None = None
    """A connection that is accepted is healthy."""
    exec: Exec | None = None
    """Exit 0 is healthy."""
    initial_delay_seconds: Annotated[int, Meta(ge=0, le=86400)] = 0
    """Wait before the first check."""
    period_seconds: Seconds = 10
    """Between two checks."""
    timeout_seconds: Seconds = 1
    """A slower answer counts as none."""
    failure_threshold: Times = 3
    """Bad answers in a row until it counts."""
    success_threshold: Times = 1
    """Good answers in a row until it counts."""

    def __post_init__(self) -> None:
        if sum(c is not None for c in (self.http_get, self.tcp_socket, self.exec)) != 1:
            raise Misfit("", "a probe has exactly one of httpGet, tcpSocket and exec")


class ProbesSpec(Strict, frozen=True, kw_only=True):
    """Kubernetes' three probes."""

    startup: ProbeSpec | None = None
    """Until it passes, the others wait."""
    liveness: ProbeSpec | None = None
    """When it fails, the app is restarted."""
    readiness: ProbeSpec | None = None
    """Counts for ``minReady`` and for the app's health."""


class HookSpec(Strict, frozen=True, kw_only=True):
    """A command run in the app's tree around an update."""

    run: Text | Words
    """Program and arguments: a list, or a text that is split into words; no shell."""
    timeout: Duration = "60s"
    """Longer is a failure."""
    on_failure: Literal["Rollback", "Ignore"] = "Rollback"
    """What a failure does to the update."""


class Hooks(Strict, frozen=True, kw_only=True):
    """Commands around an update."""

    pre_update: tuple[HookSpec, ...] = ()
    """Before the old version is stopped."""
    post_update: tuple[HookSpec, ...] = ()
    """After the new version is ready."""


class DependsOn(Strict, frozen=True, kw_only=True):
    """Another App of the same fleet that comes first."""

    name: Name
    """The App."""
    condition: Literal["Started", "Healthy"] = "Started"
    """What it must be before this one starts."""


class Resources(Strict, frozen=True, kw_only=True):
    """Limits; left out, there is none."""

    memory: Size = 0
    """Bytes: ``128Mi``. More is killed by the kernel."""
    cpu: Cpu = 0
    """Cores: ``250m`` is a quarter of one."""


class HealthPolicy(Strict, frozen=True, kw_only=True):
    """When an update of the app counts as good."""

    min_ready: Duration = "10s"
    """Unbroken health after the start."""


class Stop(Strict, frozen=True, kw_only=True):
    """How the app is stopped."""

    signal: SignalName = "SIGTERM"
    """Sent first."""
    timeout: Duration = "10s"
    """Then everything in its cgroup is killed."""


class PortMapping(Strict, frozen=True, kw_only=True):
    """A port of a container."""

    container_port: Port
    """Inside."""
    host_port: Port | None = None
    """On the node."""
    protocol: Literal["TCP", "UDP"] = "TCP"
    """Transport."""


class AppSpec(Strict, frozen=True, kw_only=True):
    """What all types have."""

    env: dict[EnvName, str] = {}
    """Environment. Values may be templates."""
    platforms: tuple[PlatformWord, ...] = ()
    """Platforms the app must exist for; left out, those of the nodes that get it."""
    resources: Resources = Resources()
    """Limits."""
    ports: tuple[PortMapping, ...] = ()
    """Ports. Accepted, not yet acted on."""
    depends_on: Annotated[tuple[DependsOn, ...], Meta(max_length=50)] = ()
    """Apps of the same fleet that start first."""
    hooks: Hooks = Hooks()
    """Commands around an update."""
    probes: ProbesSpec = ProbesSpec()
    """Health checks."""
    health_policy: HealthPolicy = HealthPolicy()
    """When an update counts as good."""
    identity: AppIdentity | None = None
    """A SPIFFE ID for the app's processes, by the Workload API; ``{}`` takes the defaults."""
    ingress: Annotated[tuple[IngressRule, ...], Meta(max_length=16)] = ()
    """Ports of the node that lead to the app over mTLS, for callers that are named. Needs an
    ``identity``."""
    replicas: Annotated[int, Meta(ge=1, le=100)] = 1
    """How many on one node. More than 1 is accepted, not yet acted on."""
    restart: Literal["Always", "OnFailure", "Never"] = "Always"
    """When it is started again after it ended."""
    user: str = ""
    """Runs as this user; left out, as the agent's."""
    stop: Stop = Stop()
    """How it is stopped."""

    def __post_init__(self) -> None:
        if self.ingress and self.identity is None:
            raise Misfit("ingress", "an ingress needs an identity: add `identity: {}`")
        ports = [rule.port for rule in self.ingress]
        for port in ports:
            if ports.count(port) > 1:
                raise Misfit("ingress", f"port {port} occurs twice")


class ProcessSpec(AppSpec, frozen=True, kw_only=True, tag_field="type", tag="process"):
    """A signed tree of files and a command, run under the agent's own supervisor."""

    artifact: ArtifactRef
    """The tree of files."""
    command: Words
    """Program and arguments; no shell. A program with a ``/`` is looked up in the tree, else on
    PATH. Words may be templates."""


class ContainerSpec(AppSpec, frozen=True, kw_only=True, tag_field="type", tag="container"):
    """An OCI image. Accepted, not yet acted on."""

    image: Text
    """Reference, best with a digest."""
    command: tuple[str, ...] = ()
    """Replaces the image's command. Words may be templates."""


class ComposeSpec(AppSpec, frozen=True, kw_only=True, tag_field="type", tag="compose"):
    """A compose file. Accepted, not yet acted on."""

    content: Text
    """The compose file."""


class QuadletFile(Strict, frozen=True, kw_only=True):
    """One file of a quadlet app."""

    name: Text
    """File name such as ``web.container``."""
    content: str
    """Its text."""


class QuadletSpec(AppSpec, frozen=True, kw_only=True, tag_field="type", tag="quadlet"):
    """Podman quadlet files. Accepted, not yet acted on."""

    files: Annotated[tuple[QuadletFile, ...], Meta(min_length=1)]
    """The files."""


class SystemdSpec(AppSpec, frozen=True, kw_only=True, tag_field="type", tag="systemd"):
    """A systemd unit out of an artifact. Accepted, not yet acted on."""

    artifact: ArtifactRef
    """The tree of files with the unit."""
    unit: Text
    """Unit name such as ``telemetry.service``."""


class KubernetesSpec(AppSpec, frozen=True, kw_only=True, tag_field="type", tag="kubernetes"):
    """Kubernetes manifests for a node-local cluster. Accepted, not yet acted on."""

    manifests: Annotated[tuple[dict[str, Any], ...], Meta(min_length=1)]
    """The objects."""
    namespace: Name = "default"
    """Where they go."""


class Chart(Strict, frozen=True, kw_only=True):
    """A Helm chart."""

    repository: Text
    """URL of the repository or OCI registry."""
    name: Text
    """Chart name."""
    version: Version
    """Chart version."""


class HelmSpec(AppSpec, frozen=True, kw_only=True, tag_field="type", tag="helm"):
    """A Helm chart for a node-local cluster. Accepted, not yet acted on."""

    chart: Chart
    """Which chart."""
    values: dict[str, Any] = {}
    """Its values."""
    namespace: Name = "default"
    """Where it goes."""


AnyAppSpec = (
    ProcessSpec
    | ContainerSpec
    | ComposeSpec
    | QuadletSpec
    | SystemdSpec
    | KubernetesSpec
    | HelmSpec
)


class App(Strict, frozen=True, kw_only=True, tag_field="kind", tag="App"):
    """Something that runs."""

    api_version: ApiVersion
    metadata: Metadata
    spec: AnyAppSpec
