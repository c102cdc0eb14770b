"""A workload that uses the ``spiffe`` package: prints what it sees, as JSON lines.

Usage: workload_client.py SOCKET. Reads a line of standard input to begin its end.
"""

import json
import sys
import threading

from spiffe import JwtSource, WorkloadApiClient, X509Source
from spiffe.errors import PySpiffeError


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def main(socket: str) -> None:
    address = f"unix://{socket}"
    with WorkloadApiClient(address) as client:
        svid = client.fetch_x509_svid(timeout=20)
        say(
            step="x509",
            id=str(svid.spiffe_id),
            chain=len(svid.cert_chain),
            hint=svid.hint if hasattr(svid, "hint") else None,
        )
        bundles = client.fetch_x509_bundles(timeout=20)
        say(step="bundles", domains=sorted(str(b.trust_domain) for b in bundles.bundles))
        token = client.fetch_jwt_svid(audience={"db"}, timeout=20)
        say(step="jwt", id=str(token.spiffe_id), audience=sorted(token.audience))
        known = client.fetch_jwt_bundles(timeout=20)
        say(step="jwt bundles", domains=sorted(str(b.trust_domain) for b in known.bundles))
        checked = client.validate_jwt_svid(token.token, "db", timeout=20)
        say(step="validated", id=str(checked.spiffe_id))
        try:
            client.validate_jwt_svid(token.token, "other", timeout=20)
        except PySpiffeError as error:
            say(step="wrong audience", error=str(error))
        say(step="ready to watch")
        serials: list[int] = []
        enough = threading.Event()

        def see(context: object) -> None:
            serials.append(context.default_svid.leaf.serial_number)  # type: ignore[attr-defined]
            say(step="watched", serial=str(serials[-1]))
            if len(set(serials)) >= 3:
                enough.set()

        watch = client.stream_x509_contexts(see, lambda error: say(step="error", error=str(error)))
        say(step="rotated", all=enough.wait(30))
        watch.cancel()
    with X509Source(socket_path=address, timeout_in_seconds=20) as source:
        say(step="x509 source", id=str(source.svid.spiffe_id))
    with JwtSource(socket_path=address, timeout_in_seconds=20) as source:
        say(step="jwt source", id=str(source.fetch_svid(audience={"db"}).spiffe_id))


main(sys.argv[1])
