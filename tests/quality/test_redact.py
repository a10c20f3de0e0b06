from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.redaction.redact import redact

# Assembled, so that no scanner takes this file for a leak.
KEY = "sk-" + "proj-" + "a1B2c3D4e5" * 4


@pytest.mark.parametrize(
    ("text", "clean", "kinds"),
    [
        ("mail bob.o'neil+x@mail.example.co.uk.", "mail [EMAIL].", {"email": 1}),
        ("call (415) 555-2671 or +44 20 7946 0958", "call [PHONE] or [PHONE]", {"phone": 2}),
        ("call 555-123-4567", "call [PHONE]", {"phone": 1}),
        ("card 4111 1111 1111 1111, 378282246310005", "card [CARD], [CARD]", {"card": 2}),
        ("pay to GB82 WEST 1234 5698 7654 32", "pay to [IBAN]", {"iban": 1}),
        ("from 203.0.113.9, and 2001:db8::8a2e:370:7334.", "from [IP], and [IP].", {"ip": 2}),
        (f"use {KEY} now", "use [SECRET] now", {"secret": 1}),
        ("AKIA" + "IOSFODNN7EXAMPLE", "[SECRET]", {"secret": 1}),
        ("ghp_" + "a1B2" * 9, "[SECRET]", {"secret": 1}),
        ("my password is hunter2!!", "my password is [SECRET]", {"secret": 1}),
        ('{"api_key": "abcd-1234-efgh"}', '{"api_key": "[SECRET]"}', {"secret": 1}),
        ("Authorization: Bearer abcdefgh12345678ij", "Authorization: Bearer [SECRET]", {"secret": 1}),
        ("see https://me:pa55word@example.com/x", "see https://[SECRET]@example.com/x", {"secret": 1}),
        (
            "-----BEGIN RSA PRIVATE" + " KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----\nthat was it",
            "[SECRET]\nthat was it",
            {"secret": 1},
        ),
    ],
)
def test_finds(text, clean, kinds):
    assert redact(text) == (clean, kinds)


@pytest.mark.parametrize(
    "text",
    [
        "at 2018-05-02T19:38:15Z, id 720840be-e522-47ba-9e9f-143f66372673",
        "order 1234567890123456, 4111111111111112",  # no check digit of a card
        "I was born 08/24/1990 and walked 12345 miles for 1000000 dollars",
        "pi is 3.14159265, the epoch 1600000000000",
        "listen on 127.0.0.1 or 0.0.0.0 or ::1, version 1.2.3.4.5",
        "the password is on the wall, and the secret is out",
        "bob@home and 12:30:00 and a::b",
        "RESPOND",
        "",
    ],
)
def test_leaves_alone(text):
    assert redact(text) == (text, {})


def test_a_region_reads_its_own_numbers():
    assert redact("ring 020 7946 0958", region="GB")[0] == "ring [PHONE]"


@given(st.text(alphabet="aZ09 @.:-+/=_()\n[]", max_size=200))
def test_redacting_twice_changes_nothing_more(text):
    once, _ = redact(text)
    assert redact(once)[0] == once


@given(st.emails(domains=st.just("example.org")), st.text(max_size=20))
def test_no_common_address_survives(address, around):
    local = address.split("@")[0]
    if all(c.isalnum() or c in "._%+-" for c in local) and local.isascii():
        assert address not in redact(f"{around} {address} {around}")[0]
