"""Verifying ES256 signatures without a cryptography library. Pure.

The resident agent checks JWT-SVIDs for its workloads; starting the worker for one would cost a
quarter of a second, and everything here is public: key, message and signature. So timing gives
nothing away, and nothing here may ever be used to sign.

Sources: FIPS 186-5 section 6.4.2, SEC 1 section 4.1.4, SP 800-186 (the curve), RFC 7518
section 3.4 (form of the signature). Points are Jacobian (x/z^2, y/z^3); multiplication is two
sliding windows (w-NAF) at once. Formulas: Hyperelliptic.org EFD, dbl-2001-b and add-2007-bl.
"""

from __future__ import annotations

import hashlib
from typing import Final

P: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
N: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_B: Final = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
_G: Final = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
    1,
)
_WINDOW: Final = 5

Point = tuple[int, int, int]
_NOWHERE: Final[Point] = (1, 1, 0)


def verify(point: bytes, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` (r and s, 32 bytes each) is that of the key over the message.

    ``point`` is the public key: x and y, 32 bytes each.
    """
    if len(point) != 64 or len(signature) != 64:
        return False
    key = (int.from_bytes(point[:32], "big"), int.from_bytes(point[32:], "big"), 1)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if not _on_curve(key) or not 0 < r < N or not 0 < s < N:
        return False
    digest = int.from_bytes(hashlib.sha256(message).digest(), "big")
    inverse = pow(s, -1, N)
    x, _, z = _sum_of_two(digest * inverse % N, r * inverse % N, key)
    if z == 0:
        return False
    square = z * z % P
    return (x - r * square) % P == 0 or (r + N < P and (x - (r + N) * square) % P == 0)


def _on_curve(point: Point) -> bool:
    x, y, _ = point
    return x < P and y < P and (y * y - (x * x * x - 3 * x + _B)) % P == 0


def _double(point: Point) -> Point:
    x, y, z = point
    if z == 0 or y == 0:
        return _NOWHERE
    delta = z * z % P
    gamma = y * y % P
    beta = x * gamma % P
    alpha = 3 * (x - delta) * (x + delta) % P
    x3 = (alpha * alpha - 8 * beta) % P
    z3 = 2 * y * z % P
    return x3, (alpha * (4 * beta - x3) - 8 * gamma * gamma) % P, z3


def _add(one: Point, two: Point) -> Point:
    x1, y1, z1 = one
    x2, y2, z2 = two
    if z1 == 0:
        return two
    if z2 == 0:
        return one
    z1z1, z2z2 = z1 * z1 % P, z2 * z2 % P
    u1, u2 = x1 * z2z2 % P, x2 * z1z1 % P
    s1, s2 = y1 * z2 * z2z2 % P, y2 * z1 * z1z1 % P
    h, r = (u2 - u1) % P, (s2 - s1) % P
    if h == 0:
        return _double(one) if r == 0 else _NOWHERE
    hh = h * h % P
    hhh = h * hh % P
    v = u1 * hh % P
    x3 = (r * r - hhh - 2 * v) % P
    return x3, (r * (v - x3) - s1 * hhh) % P, h * z1 * z2 % P


def _odd_multiples(point: Point) -> list[Point]:
    """1, 3, 5, ... times the point, as many as a window needs."""
    twice, found = _double(point), [point]
    for _ in range((1 << _WINDOW - 2) - 1):
        found.append(_add(found[-1], twice))
    return found


def _digits(scalar: int) -> list[int]:
    """Signed digits, lowest first: odd and below 2^(w-1), or 0."""
    found = []
    while scalar:
        digit = 0
        if scalar & 1:
            digit = scalar & (1 << _WINDOW) - 1
            if digit >= 1 << _WINDOW - 1:
                digit -= 1 << _WINDOW
            scalar -= digit
        found.append(digit)
        scalar >>= 1
    return found


def _sum_of_two(first: int, second: int, key: Point) -> Point:
    """``first`` times the generator plus ``second`` times the key."""
    rows = [(_digits(first), _odd_multiples(_G)), (_digits(second), _odd_multiples(key))]
    total = _NOWHERE
    for place in reversed(range(max(len(digits) for digits, _ in rows))):
        total = _double(total)
        for digits, multiples in rows:
            digit = digits[place] if place < len(digits) else 0
            if digit > 0:
                total = _add(total, multiples[digit >> 1])
            elif digit < 0:
                x, y, z = multiples[-digit >> 1]
                total = _add(total, (x, P - y, z))
    return total
