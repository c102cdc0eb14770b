"""Checked documents to the parts that a release is made of. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import msgspec

from edgewise.model.documents import EgressPolicy, Secret
from edgewise.model.documents.app import AnyAppSpec, HookSpec, ProbeSpec, ProcessSpec
from edgewise.model.documents.content import ConfigSpec
from edgewise.model.documents.fleet import DeliverySpec, FleetSpec, WindowSpec
from edgewise.model.documents.identity import AppIdentity, IdentityTerms, WorkloadIdentitySpec
from edgewise.model.quantity import parse_bytes, parse_cpu_milli, parse_duration
from edgewise.protocol import codec
from edgewise.protocol.content import (
    ConfigFile,
    DeliverySettings,
    Dependency,
    ExecProbe,
    FilesConfig,
    Hook,
    HttpProbe,
    IngressPort,
    NodeSettings,
    NotActedOn,
    OnChange,
    Probe,
    Probes,
    ProcessApp,
    SealedSecret,
    TcpProbe,
    TreeRef,
    Window,
    WorkloadRegistration,
)
from edgewise.protocol.egress import EgressRule, EgressRules


def process_app(
    name: str, spec: ProcessSpec, trees: Mapping[str, TreeRef], fleet: str
) -> ProcessApp:
    """The part of a process App; env and command are as written, to be rendered."""
    cpu = spec.resources.cpu
    return ProcessApp(
        name=name,
        trees=dict(trees),
        command=spec.command,
        env=spec.env,
        user=spec.user,
        memory_bytes=parse_bytes(str(spec.resources.memory)),
        cpu_milli=parse_cpu_milli(cpu if isinstance(cpu, str) else f"{cpu:g}"),
        probes=Probes(
            startup=_probe(spec.probes.startup),
            liveness=_probe(spec.probes.liveness),
            readiness=_probe(spec.probes.readiness),
        ),
        min_ready_s=seconds(spec.health_policy.min_ready),
        stop_signal=spec.stop.signal,
        stop_timeout_s=seconds(spec.stop.timeout),
        restart=spec.restart,
        depends_on=tuple(Dependency(d.name, d.condition) for d in spec.depends_on),
        pre_update=tuple(_hook(h) for h in spec.hooks.pre_update),
        post_update=tuple(_hook(h) for h in spec.hooks.post_update),
        identity=_app_identity(name, spec.identity, fleet),
        ingress=tuple(IngressPort(i.port, i.to, i.allow, i.address) for i in spec.ingress)
        or msgspec.UNSET,
    )


def default_path(fleet: str, app: str) -> str:
    """The SPIFFE path of an App that asks for an identity and names no path."""
    return f"/app/{fleet}/{app}"


def _app_identity(
    name: str, spec: AppIdentity | None, fleet: str
) -> WorkloadRegistration | msgspec.UnsetType:
    if spec is None:
        return msgspec.UNSET
    path = spec.spiffe_id or default_path(fleet, name)
    return _registration(name, path, (f"edgewise:app:{name}",), spec)


def workload_identity(name: str, spec: WorkloadIdentitySpec) -> WorkloadRegistration:
    """The part of a WorkloadIdentity."""
    return _registration(name, spec.spiffe_id, tuple(sorted(set(spec.selectors))), spec)


def _registration(
    name: str, path: str, selectors: tuple[str, ...], terms: IdentityTerms
) -> WorkloadRegistration:
    return WorkloadRegistration(
        name=name,
        path=path,
        selectors=selectors,
        ttl_s=seconds(terms.ttl) if terms.ttl else 0.0,
        dns=tuple(dict.fromkeys(terms.dns_names)),
        hint=terms.hint,
        federates_with=tuple(sorted(set(terms.federates_with))),
    )


def other_app(
    name: str, spec: AnyAppSpec, env: dict[str, str], command: tuple[str, ...]
) -> NotActedOn:
    """An App of a type whose engine comes later, whole, so that a plan can show it."""
    body: dict[str, Any] = msgspec.to_builtins(spec)
    body["env"] = env
    if command:
        body["command"] = command
    return NotActedOn(name, "App", {"type": body["type"], "spec": codec.encode(body).decode()})


def seconds(duration: str) -> float:
    """A duration word in seconds."""
    return parse_duration(duration).total_seconds()


def _probe(spec: ProbeSpec | None) -> Probe | None:
    if spec is None:
        return None
    check: HttpProbe | TcpProbe | ExecProbe
    if spec.http_get is not None:
        check = HttpProbe(spec.http_get.port, spec.http_get.path, spec.http_get.host)
    elif spec.tcp_socket is not None:
        check = TcpProbe(spec.tcp_socket.port, spec.tcp_socket.host)
    else:
        check = ExecProbe(spec.exec.command if spec.exec else ())
    return Probe(
        check,
        period_s=float(spec.period_seconds),
        timeout_s=float(spec.timeout_seconds),
        initial_delay_s=float(spec.initial_delay_seconds),
        failure_threshold=spec.failure_threshold,
        success_threshold=spec.success_threshold,
    )


def _hook(spec: HookSpec) -> Hook:
    words = tuple(shlex.split(spec.run)) if isinstance(spec.run, str) else spec.run
    return Hook(words, seconds(spec.timeout), spec.on_failure)


def files_config(name: str, spec: ConfigSpec) -> FilesConfig:
    """The part of a Config; path and content are as written, to be rendered."""
    return FilesConfig(
        name=name,
        files=tuple(ConfigFile(f.path, f.content, int(f.mode, 8), f.owner) for f in spec.files),
        on_change=tuple(
            OnChange(c.paths, c.action, c.app or "", c.signal, c.command)
            for c in spec.on_change
            if c.unit is None
        ),
    )


def ciphertext(secret: Secret) -> bytes:
    """What is resealed: canonical JSON ``{"name", "encryption", "data": {key: age text}}``."""
    return codec.encode(
        {
            "name": secret.metadata.name,
            "encryption": secret.spec.encryption,
            "data": secret.spec.data,
        }
    )


def sealed_secret(secret: Secret, source: str) -> SealedSecret | NotActedOn:
    """The part of a Secret; SOPS files wait for their engine."""
    name, spec = secret.metadata.name, secret.spec
    if spec.encryption == "sops":
        return NotActedOn(name, "Secret", {"encryption": "sops", "source": source})
    return SealedSecret(
        name=name,
        source=source,
        mount_path=spec.mount_path,
        keys=tuple(sorted(spec.data)),
        mode=int(spec.mode, 8),
        owner=spec.owner,
    )


def egress_rules(policy: EgressPolicy) -> EgressRules:
    """The part of an EgressPolicy."""
    spec = policy.spec
    return EgressRules(
        name=policy.metadata.name,
        apps=tuple(sorted({ref.name for ref in spec.apps})),
        allow=tuple(
            EgressRule(
                host=rule.host,
                ports=tuple(sorted(set(rule.ports))),
                mtls=rule.mtls,
                protocol=rule.protocol,
                spiffe_ids=rule.spiffe_ids,
                trust=rule.trust,
                methods=rule.methods,
                paths=rule.paths,
                apps=tuple(sorted({ref.name for ref in rule.apps})),
                identities=rule.identities,
                addresses=rule.addresses,
            )
            for rule in spec.allow
        ),
        otherwise=spec.otherwise,
        enforce=spec.enforce,
    )


def node_settings(spec: FleetSpec) -> NodeSettings:
    """Fleet-wide rules that the node itself follows."""
    return NodeSettings(
        drift=spec.drift_policy.mode,
        drift_interval_s=seconds(spec.drift_policy.interval),
        download_window=_window(spec.update_window.download),
        apply_window=_window(spec.update_window.apply),
        delivery=_delivery(spec.delivery),
    )


def _delivery(spec: DeliverySpec | None) -> DeliverySettings | msgspec.UnsetType:
    if spec is None:
        return msgspec.UNSET
    return DeliverySettings(
        max_rate=0 if spec.max_rate is None else parse_bytes(str(spec.max_rate)),
        metered=spec.metered_links,
        spread_s=seconds(spec.spread),
        reserve=-1 if spec.reserve is None else parse_bytes(str(spec.reserve)),
    )


def _window(spec: WindowSpec | None) -> Window | None:
    if spec is None:
        return None
    return Window(" ".join(spec.at.split()), seconds(spec.duration), spec.time_zone)
