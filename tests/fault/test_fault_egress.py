"""What an app hears when it calls out: real sockets, real TLS, far ends of every kind."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
from egress_node import HOME, STOCK, answers, echo, get, node, read_answer, read_request

from edgewise.net.egress.ports import Bounds
from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.egress import EgressRule
from edgewise.testing.egress import TestAuthority, bundles_of, server_tls

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def test_plain_http_becomes_mtls_with_the_callers_own_identity(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await n.far_end()
        await n.follow(n.rule(port))
        answer = await n.ask(f"stock.acme.net:{port}/v1/x?y=1")
        assert answer.status == 200, answer
        assert answer.body.startswith(b"GET /v1/x?y=1 HTTP/1.1\r\nhost: stock.acme.net:")
        assert ("URI", "spiffe://eu.acme/app/shops/till") in n.peers[0]["subjectAltName"]


async def test_the_unix_socket_takes_a_request_without_a_whole_url(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await n.far_end()
        await n.follow(n.rule(port))
        reader, writer = await asyncio.open_unix_connection(str(n.unix))
        writer.write(f"GET /v1 HTTP/1.1\r\nHost: stock.acme.net:{port}\r\n\r\n".encode())
        assert (await read_answer(reader)).status == 200
        writer.close()


# Far ends that are not as they should be


async def test_a_far_end_that_never_asks_for_our_certificate_is_refused(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        svid = n.authority.svid("/app/shops/stock")
        port = await n.far_end(tls=server_tls(svid, [n.authority.root], ssl.CERT_NONE))
        await n.follow(n.rule(port))
        answer = await n.ask(f"stock.acme.net:{port}/")
        assert (answer.status, answer.problem["reason"]) == (502, "not-mtls")
        assert "did not ask" in answer.problem["detail"]
        assert answer.problem["rule"] == "out: allow[0] (stock.acme.net)"
        assert answer.headers["proxy-status"] == "edgewise; error=tls_protocol_error"


async def test_a_far_end_that_asks_and_would_do_without_is_asked_anyway(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        svid = n.authority.svid("/app/shops/stock")
        port = await n.far_end(tls=server_tls(svid, [n.authority.root], ssl.CERT_OPTIONAL))
        await n.follow(n.rule(port))
        assert (await n.ask(f"stock.acme.net:{port}/")).status == 200
        assert n.peers[0]


async def test_another_workload_in_the_far_ends_place_is_refused(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        svid = n.authority.svid("/app/shops/thief", "stock.acme.net")
        port = await n.far_end(tls=server_tls(svid, [n.authority.root]))
        await n.follow(n.rule(port))
        answer = await n.ask(f"stock.acme.net:{port}/")
        assert (answer.status, answer.problem["reason"]) == (502, "peer")
        assert "spiffe://eu.acme/app/shops/thief, not " + STOCK in answer.problem["detail"]


async def test_a_certificate_with_two_identities_is_nobody(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        svid = n.authority.svid("/app/shops/stock", uris=2)
        port = await n.far_end(tls=server_tls(svid, [n.authority.root]))
        await n.follow(n.rule(port))
        assert (await n.ask(f"stock.acme.net:{port}/")).problem["reason"] == "peer"


async def test_a_foreign_authority_is_refused_even_for_the_right_name(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        thief = TestAuthority()
        svid = thief.svid("/app/shops/stock", "stock.acme.net")
        port = await n.far_end(tls=server_tls(svid, [n.authority.root]))
        await n.follow(n.rule(port), n.rule(port, host="by.name", trust="Organisation"))
        answer = await n.ask(f"stock.acme.net:{port}/")
        assert (answer.status, answer.problem["reason"]) == (502, "untrusted")


async def test_a_certificate_that_has_run_out_is_refused(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        svid = n.authority.svid("/app/shops/stock", minutes=-5)
        port = await n.far_end(tls=server_tls(svid, [n.authority.root]))
        await n.follow(n.rule(port))
        problem = (await n.ask(f"stock.acme.net:{port}/")).problem
        assert problem["reason"] == "untrusted"
        assert "expired" in problem["detail"]


async def test_a_far_end_without_tls_is_refused(tmp_path: Path) -> None:
    async with node(tmp_path) as n:

        async def confused(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()

        port = await n.far_end(confused, plain=True)
        await n.follow(n.rule(port))
        answer = await n.ask(f"stock.acme.net:{port}/")
        assert (answer.status, answer.problem["reason"]) == (502, "protocol")


async def test_a_far_end_with_old_tls_is_refused(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        tls = server_tls(n.authority.svid("/app/shops/stock"), [n.authority.root])
        tls.maximum_version = ssl.TLSVersion.TLSv1_2
        port = await n.far_end(tls=tls)
        await n.follow(n.rule(port))
        assert (await n.ask(f"stock.acme.net:{port}/")).problem["reason"] == "protocol"


async def test_a_far_end_that_does_not_take_us_is_named(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        other = TestAuthority("us.acme")
        tls = server_tls(n.authority.svid("/app/shops/stock"), [other.root])
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def one() -> str:
                sock, _ = listener.accept()
                try:
                    tls.wrap_socket(sock, server_side=True)
                except ssl.SSLError as error:
                    return error.reason
                return ""

            far_end = asyncio.create_task(asyncio.to_thread(one))
            port = listener.getsockname()[1]
            await n.follow(n.rule(port))
            answer = await n.ask(f"stock.acme.net:{port}/")
            assert await far_end == "CERTIFICATE_VERIFY_FAILED"
        assert (answer.status, answer.problem["reason"]) == (502, "rejected"), answer
        assert "does not accept our certificate: unknown ca" in answer.problem["detail"]


async def test_a_far_end_that_hangs_up_on_our_certificate_is_named(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        other = TestAuthority("us.acme")
        tls = server_tls(n.authority.svid("/app/shops/stock"), [other.root])
        port = await n.far_end(tls=tls)  # asyncio sends no alert
        await n.follow(n.rule(port))
        answer = await n.ask(f"stock.acme.net:{port}/")
        assert (answer.status, answer.problem["reason"]) == (502, "rejected"), answer


async def test_nobody_at_the_far_end_is_told_at_once(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        await n.follow(n.rule(1))
        answer = await n.ask("stock.acme.net:1/")
        assert (answer.status, answer.problem["reason"]) == (502, "unreachable")
        assert "refused" in answer.problem["detail"]


async def test_a_name_by_certificate_must_fit_and_chain_to_the_trust_domain_named(
    tmp_path: Path,
) -> None:
    async with node(tmp_path) as n:
        partner = TestAuthority("partner.example")
        n.svids.set_bundles(bundles_of(n.authority, foreign=[partner]))
        tls = server_tls(partner.svid("/x", "api.partner.example"), [n.authority.root])
        port = await n.far_end(tls=tls)
        more = {"host": "*.partner.example", "trust": "partner.example"}
        await n.follow(n.rule(port, **more))
        assert (await n.ask(f"api.partner.example:{port}/")).status == 200
        wrong_name = await n.ask(f"other.partner.example:{port}/")
        assert wrong_name.problem["reason"] == "untrusted"
        assert "Hostname mismatch" in wrong_name.problem["detail"]
        await n.follow(n.rule(port, host="*.partner.example", trust="Organisation"))
        assert (await n.ask(f"api.partner.example:{port}/")).problem["reason"] == "untrusted"


async def test_another_organisation_cannot_speak_for_our_names(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        partner = TestAuthority("partner.example")
        n.svids.set_bundles(bundles_of(n.authority, foreign=[partner]))
        forged = partner.svid("/app/shops/stock", domain="eu.acme")
        port = await n.far_end(tls=server_tls(forged, [n.authority.root]))
        both = (STOCK, "spiffe://partner.example/*")
        await n.follow(n.rule(port), n.rule(port, host="both", spiffe_ids=both))
        assert (await n.ask(f"stock.acme.net:{port}/")).problem["reason"] == "untrusted"
        mixed = (await n.ask(f"both:{port}/")).problem
        assert "several organisations" in mixed["detail"]


# Names and addresses


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "0.0.0.0"]
)
async def test_a_name_that_was_rebound_into_the_machine_is_not_called(
    tmp_path: Path, address: str
) -> None:
    async with node(tmp_path) as n:
        port = await n.far_end()
        n.names.known["stock.acme.net"] = [address]
        await n.follow(n.rule(port, addresses=()))
        answer = await n.ask(f"stock.acme.net:{port}/")
        assert (answer.status, answer.problem["reason"]) == (403, "address")
        assert n.peers == []


async def test_a_name_is_looked_up_once_and_what_was_judged_is_called(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await n.far_end()
        n.names.known["stock.acme.net"] = ["127.0.0.2", "127.0.0.1"]
        await n.follow(n.rule(port, addresses=("127.0.0.1/32",)))
        assert (await n.ask(f"stock.acme.net:{port}/")).status == 200
        assert n.names.asked == ["stock.acme.net"]


async def test_a_name_that_does_not_exist_is_told(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        n.names.known["stock.acme.net"] = "Name or service not known"
        await n.follow(n.rule(443))
        answer = await n.ask("stock.acme.net/")
        assert (answer.status, answer.problem["reason"]) == (502, "dns")


# Refusals


async def test_a_refusal_says_why_which_rule_was_near_and_what_to_do(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        await n.follow(n.rule(443, methods=("GET",), paths=("/v1",)))
        answer = await n.ask("stock.acme.net/v1", method="DELETE")
        assert answer.status == 403
        assert answer.problem["reason"] == "method"
        assert answer.problem["rule"] == "out: allow[0] (stock.acme.net)"
        assert answer.headers["proxy-status"] == "edgewise; error=http_request_denied"
        assert (await n.ask("stock.acme.net/v2")).problem["reason"] == "path"
        assert (await n.ask("other.acme.net/v1")).problem["reason"] == "host"
        n.callers.caller = None
        assert (await n.ask("stock.acme.net/v1")).problem["reason"] in ("caller", "identity")


async def test_refusals_are_counted_and_logged_by_app_host_and_reason(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await n.far_end()
        await n.follow(n.rule(port))
        for _ in range(3):
            await n.ask("other.acme.net/")
        await n.ask(f"stock.acme.net:{port}/")
        assert n.gateway.counts() == {
            ("till", "other.acme.net", "host"): 3,
            ("till", "stock.acme.net", ""): 1,
        }
        await asyncio.wait_for(n.log.said("egress refused"), 10)


async def test_what_is_counted_has_a_bound(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        await n.follow(n.rule(443))
        reader, writer = await n.connect()
        for number in range(700):
            writer.write(get(f"h{number}.example/"))
            await read_answer(reader)
        counts = n.gateway.counts()
        assert len(counts) <= 520
        assert counts[("till", "(others)", "host")] == 700 - 512
        writer.close()


async def test_connect_is_refused_where_the_gateway_does_the_mtls(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        await n.follow(n.rule(443))
        reader, writer = await n.connect()
        writer.write(b"CONNECT stock.acme.net:443 HTTP/1.1\r\nHost: stock.acme.net:443\r\n\r\n")
        answer = await read_answer(reader)
        assert (answer.status, answer.problem["reason"]) == (403, "tunnel")
        assert "http://stock.acme.net:443/" in answer.problem["hint"]
        writer.close()


async def test_an_app_without_identity_hears_so(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        n.callers.caller = type(n.callers)("stranger").caller
        await n.follow(n.rule(443))
        assert (await n.ask("stock.acme.net/")).problem["reason"] == "identity"


async def test_an_identity_that_is_not_there_yet_is_a_matter_of_time(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        await n.svids.replace(gone="spiffe://eu.acme/app/shops/till")
        await n.follow(n.rule(443))
        answer = await n.ask("stock.acme.net/")
        assert (answer.status, answer.problem["reason"]) == (503, "busy")
        assert answer.headers["retry-after"] == "5"


async def test_an_identity_that_has_run_out_is_not_used(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        await n.svids.replace(n.authority.svid("/app/shops/till", minutes=-1))
        await n.follow(n.rule(443))
        assert "run out" in (await n.ask("stock.acme.net/")).problem["detail"]


async def test_before_the_hub_said_whom_to_trust_nothing_leaves(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        n.svids.set_bundles(None)
        await n.follow(n.rule(443))
        assert (await n.ask("stock.acme.net/")).status == 503
        n.svids.set_bundles(TrustBundles(1, {}))
        await n.svids.replace()
        assert (await n.ask("stock.acme.net/")).problem["reason"] == "untrusted"


async def test_without_mtls_bytes_go_as_they_are_where_a_rule_says_so(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await n.far_end(plain=True)
        await n.follow(n.rule(port, host="open.example", mtls=False))
        assert (await n.ask(f"open.example:{port}/")).status == 200
        reader, writer = await n.connect()
        writer.write(f"CONNECT open.example:{port} HTTP/1.1\r\n\r\n".encode())
        assert (await read_answer_head(reader)).startswith(b"HTTP/1.1 200")
        writer.write(b"GET /in-tunnel HTTP/1.1\r\n\r\n")
        assert b"/in-tunnel" in (await read_answer(reader)).body
        writer.close()


async def test_an_https_url_never_leaves_in_plain(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await n.far_end(plain=True)
        secure = await n.far_end()
        await n.follow(n.rule(port, host="open.example", mtls=False), n.rule(secure))
        answer = await n.ask(f"GET https://open.example:{port}/ HTTP/1.1\r\n\r\n".encode())
        assert (answer.status, answer.problem["reason"]) == (403, "tunnel")
        assert n.peers == []
        answer = await n.ask(f"GET https://stock.acme.net:{secure}/ HTTP/1.1\r\n\r\n".encode())
        assert answer.status == 200


async def test_a_tcp_rule_wraps_a_tunnel_in_mtls(tmp_path: Path) -> None:
    async with node(tmp_path) as n:

        async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1000):
                writer.write(data.upper())

        port = await n.far_end(upper)
        await n.follow(n.rule(port, protocol="TCP"))
        reader, writer = await n.connect()
        writer.write(f"CONNECT stock.acme.net:{port} HTTP/1.1\r\n\r\nearly ".encode())
        assert (await read_answer_head(reader)).startswith(b"HTTP/1.1 200")
        writer.write(b"late")
        assert await reader.readexactly(10) == b"EARLY LATE"
        writer.write_eof()
        assert await reader.read() == b"", "the far end heard of the end, and ended too"
        assert ("URI", "spiffe://eu.acme/app/shops/till") in n.peers[0]["subjectAltName"]
        writer.close()


async def test_a_plain_tunnel_may_end_one_way_first(tmp_path: Path) -> None:
    async with node(tmp_path) as n:

        async def last_word(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            said = await reader.read()
            writer.write(b"heard " + said)
            await writer.drain()

        port = await n.far_end(last_word, plain=True)
        await n.follow(n.rule(port, host="open.example", mtls=False))
        reader, writer = await n.connect()
        writer.write(f"CONNECT open.example:{port} HTTP/1.1\r\n\r\n".encode())
        await read_answer_head(reader)
        writer.write(b"this")
        writer.write_eof()
        assert await reader.read() == b"heard this"
        writer.close()


async def test_an_app_that_does_tls_in_a_wrapped_tunnel_is_cut_off(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await n.far_end()
        await n.follow(n.rule(port, protocol="TCP"))
        reader, writer = await n.connect()
        writer.write(f"CONNECT stock.acme.net:{port} HTTP/1.1\r\n\r\n".encode())
        await read_answer_head(reader)
        writer.write(b"\x16\x03\x01\x02\x00\x01")
        assert await reader.read() == b""
        assert n.gateway.counts()[("till", "stock.acme.net", "tunnel")] == 1
        writer.close()


async def test_rules_that_change_close_tunnels_that_they_would_refuse(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await n.far_end(echo)
        await n.follow(n.rule(port, protocol="TCP"))
        reader, writer = await n.connect()
        writer.write(f"CONNECT stock.acme.net:{port} HTTP/1.1\r\n\r\n".encode())
        await read_answer_head(reader)
        await n.follow()
        assert await reader.read() == b""
        writer.close()


# Rotation and keeping connections


async def test_a_connection_is_kept_and_never_shared_between_identities(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await n.far_end()
        await n.follow(n.rule(port))
        for _ in range(3):
            await n.ask(f"stock.acme.net:{port}/")
        assert len(n.peers) == 1
        n.callers.caller = type(n.callers)("kiosk").caller
        await n.ask(f"stock.acme.net:{port}/")
        assert len(n.peers) == 2
        names = [peer["subjectAltName"][0][1].rpartition("/")[2] for peer in n.peers]
        assert names == ["till", "kiosk"]


async def test_rotation_under_load_drops_nothing_and_changes_the_certificate(
    tmp_path: Path,
) -> None:
    async with node(tmp_path) as n:
        port = await n.far_end()
        await n.follow(n.rule(port))
        statuses: list[int] = []

        async def load() -> None:
            reader, writer = await n.connect()
            for _ in range(60):
                writer.write(get(f"stock.acme.net:{port}/"))
                statuses.append((await read_answer(reader)).status)
            writer.close()

        async def rotate() -> None:
            for _ in range(5):
                await asyncio.sleep(0.02)
                await n.svids.replace(n.authority.svid("/app/shops/till"))

        await asyncio.gather(rotate(), *(load() for _ in range(8)))
        assert statuses == [200] * 480
        assert len({peer["serialNumber"] for peer in n.peers}) > 1


async def test_a_running_answer_outlives_a_rotation(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        go = asyncio.Event()

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
            await go.wait()
            writer.write(b"cd")
            await writer.drain()
            await reader.read()

        port = await n.far_end(slow)
        await n.follow(n.rule(port))
        reader, writer = await n.connect()
        writer.write(get(f"stock.acme.net:{port}/"))
        await reader.readuntil(b"ab")
        await n.svids.replace(n.authority.svid("/app/shops/till"))
        go.set()
        assert await reader.readexactly(2) == b"cd"
        writer.close()


async def test_a_kept_connection_that_the_far_end_closed_costs_nothing(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await n.far_end(answers(OK, close=True))
        await n.follow(n.rule(port))
        reader, writer = await n.connect()
        for _ in range(20):
            writer.write(get(f"stock.acme.net:{port}/"))
            assert (await read_answer(reader)).status == 200
        writer.close()


# Bounds


async def test_a_head_that_drips_in_is_cut_off(tmp_path: Path) -> None:
    async with node(tmp_path, Bounds(head_s=0.3, linger_s=0.1)) as n:
        await n.follow(n.rule(443))
        reader, writer = await n.connect()
        writer.write(b"GET http://stock.acme.net/ HT")
        answer = await read_answer(reader)
        assert answer.status == 408
        assert await reader.read() == b""
        writer.close()


async def test_a_body_that_stops_is_cut_off(tmp_path: Path) -> None:
    async with node(tmp_path, Bounds(body_s=0.3, linger_s=0.1)) as n:
        port = await n.far_end()
        await n.follow(n.rule(port))
        reader, writer = await n.connect()
        writer.write(
            f"POST http://stock.acme.net:{port}/ HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc".encode()
        )
        assert (await read_answer(reader)).status == 408
        writer.close()


async def test_a_far_end_that_never_answers_is_a_timeout(tmp_path: Path) -> None:
    async with node(tmp_path, Bounds(answer_s=0.3, linger_s=0.1)) as n:

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        port = await n.far_end(silent)
        await n.follow(n.rule(port))
        answer = await n.ask(f"stock.acme.net:{port}/")
        assert (answer.status, answer.problem["reason"]) == (504, "timeout")


async def test_a_handshake_that_hangs_is_a_timeout(tmp_path: Path) -> None:
    async with node(tmp_path, Bounds(handshake_s=0.3)) as n:

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        port = await n.far_end(silent, plain=True)
        await n.follow(n.rule(port))
        answer = await n.ask(f"stock.acme.net:{port}/")
        assert (answer.status, answer.problem["reason"]) == (504, "timeout")


async def test_one_app_cannot_take_every_connection(tmp_path: Path) -> None:
    async with node(tmp_path, Bounds(clients_of_one=3)) as n:
        port = await n.far_end()
        await n.follow(n.rule(port))
        held = [await n.connect() for _ in range(3)]
        for reader, writer in held:
            writer.write(get(f"stock.acme.net:{port}/"))
            assert (await read_answer(reader)).status == 200
        answer = await n.ask(f"stock.acme.net:{port}/")
        assert (answer.status, answer.problem["reason"]) == (503, "busy")
        n.callers.caller = type(n.callers)("kiosk").caller
        assert (await n.ask(f"stock.acme.net:{port}/")).status == 200
        for _, writer in held:
            writer.close()


async def read_answer_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def test_the_rule_of_these_tests_names_loopback() -> None:
    assert EgressRule("h", addresses=HOME).addresses == ("127.0.0.0/8",)


async def test_a_bug_with_one_caller_leaves_the_gateway_open_to_others(tmp_path: Path) -> None:
    async with node(tmp_path) as n:
        port = await n.far_end()
        await n.follow(n.rule(port))
        good = n.callers.of_tcp

        def bad(sock: socket.socket) -> None:
            raise RuntimeError("made by the test")

        n.gateway.listeners[0].who = bad
        reader, writer = await n.connect()
        assert await reader.read() == b""
        writer.close()
        n.gateway.listeners[0].who = good
        assert (await n.ask(f"stock.acme.net:{port}/")).status == 200
        await asyncio.wait_for(n.log.said("egress bug"), 10)
        n.log.lines.clear()
