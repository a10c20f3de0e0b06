"""Personal data and secrets are replaced by their kind before anything is learned from them.

Phone numbers are found by Google's libphonenumber (`phonenumberslite`), card numbers and IBANs are confirmed by their
check digits (`python-stdnum`), so that an order number stays an order number. Secrets are found by the issuers'
published prefixes and by assignments to names such as `password`. Names of people stay: they carry the turn-taking
that is learned.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

import phonenumbers
from stdnum import iban, luhn

# Part of a dataset's configuration hash: change it with any rule below.
REDACTION_VERSION = f"1+phonenumbers-{phonenumbers.__version__}"

_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?P<label>[A-Z ]*PRIVATE KEY(?: BLOCK)?)-----.*?(?:-----END (?P=label)-----|\Z)", re.DOTALL
)
_URL_PASSWORD = re.compile(r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)")
_EMAIL = re.compile(r"[A-Za-z0-9._%+'-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}\b")
_SECRET = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        sk-(?:proj-|ant-|or-|svcacct-|admin-)?[A-Za-z0-9_-]{20,}         # OpenAI, Anthropic, OpenRouter
      | tgp_v1_[A-Za-z0-9_-]{20,}                                        # Together
      | (?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}                              # AWS
      | gh[pousr]_[A-Za-z0-9]{36,} | github_pat_[A-Za-z0-9_]{22,}        # GitHub
      | glpat-[A-Za-z0-9_-]{20,}                                         # GitLab
      | xox[abeoprs]-[A-Za-z0-9-]{10,} | xapp-[0-9]-[A-Za-z0-9-]{10,}    # Slack
      | (?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,} | whsec_[A-Za-z0-9]{16,}  # Stripe
      | AIza[A-Za-z0-9_-]{35} | ya29\.[A-Za-z0-9_-]{20,}                 # Google
      | hf_[A-Za-z0-9]{30,} | npm_[A-Za-z0-9]{36} | pypi-[A-Za-z0-9_-]{50,}
      | SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}                       # SendGrid
      | [MNO][A-Za-z0-9_-]{23,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,}  # Discord
      | [0-9]{8,10}:AA[A-Za-z0-9_-]{33}                                  # Telegram
      | eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}    # JSON Web Token
    )(?![A-Za-z0-9])""",
    re.VERBOSE,
)
_ASSIGNED_SECRET = re.compile(
    r"""(?ix) (?P<name>\b[\w-]*
        (?:passwor[dt]|passwd|passphrase|secret|(?:api|access|private)[_-]?key|(?:auth|access)[_-]?token)
        ["']? \s* (?: [:=] | \s is \s ) \s* (?:bearer\s+)? ["']? )
        (?P<value> (?=[^\s"',;]*[0-9!@#$%^&*+/=~-]) [^\s"',;<>\[\]()]{6,} )"""
)
_BEARER = re.compile(
    r"(?i)(?P<name>\bauthorization:\s*(?:bearer|basic)\s+|\bbearer\s+(?=[^\s]*[0-9]))(?P<value>[A-Za-z0-9._~+/=-]{16,})"
)
_DIGITS = re.compile(r"(?<![\w.+-])(?:\d[ -]?){12,18}\d(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
# With a group of three digits or more, among them a decimal one: `a::b` is a name in C++.
_IPV6 = re.compile(
    r"(?<![\w:.])(?=[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:)(?=[A-Fa-f:.]*[0-9])(?=[0-9A-Fa-f:.]*[0-9A-Fa-f]{3})"
    r"[0-9A-Fa-f:.]{3,45}(?![\w:])"
)
_SEVEN_DIGITS = re.compile(r"(?:\d\D{0,3}){6}\d")

# Nearly all lines have neither, and are done with one quick search each.
_LONG_WORD = re.compile(r"[A-Za-z0-9_.:~+/=-]{16}")
_SECRET_NAME = re.compile(r"(?i)pass|secret|key|token")

Found = tuple[tuple[str, int], ...]


def redact(text: str, *, region: str = "US") -> tuple[str, Counter[str]]:
    """`text` with each finding replaced by its kind (`[EMAIL]`, `[PHONE]`, `[SECRET]`, `[CARD]`, `[IBAN]`, `[IP]`).

    Also returns counts by kind. `region` (ISO 3166) is how a phone number without a country code is read. Loopback,
    unspecified and multicast addresses stay, since they name no one. Redacting twice changes nothing more.
    """
    counts: Counter[str] = Counter()
    text = _replace(_PRIVATE_KEY, lambda _: "[SECRET]", "secret", text, counts)
    lines = []
    for line in text.split("\n"):
        clean, found = _redact_line(line, region)
        lines.append(clean)
        for kind, count in found:
            counts[kind] += count
    return "\n".join(lines), counts


# A transcript is logged again with every turn, so most lines have been seen a moment ago.
@lru_cache(maxsize=65_536)
def _redact_line(line: str, region: str) -> tuple[str, Found]:
    counts: Counter[str] = Counter()
    if "://" in line and "@" in line:
        line = _replace(_URL_PASSWORD, lambda _: "[SECRET]", "secret", line, counts)
    if _LONG_WORD.search(line):
        line = _replace(_SECRET, lambda _: "[SECRET]", "secret", line, counts)
        line = _replace(_BEARER, lambda match: match["name"] + "[SECRET]", "secret", line, counts)
    if _SECRET_NAME.search(line):
        line = _replace(_ASSIGNED_SECRET, _hide_value, "secret", line, counts)
    if "@" in line:
        line = _replace(_EMAIL, lambda _: "[EMAIL]", "email", line, counts)
    if _SEVEN_DIGITS.search(line):
        line = _replace(_IBAN, lambda match: "[IBAN]" if iban.is_valid(match[0]) else match[0], "iban", line, counts)
        line = _replace(_DIGITS, _hide_card, "card", line, counts)
    if line.count(".") >= 3:
        line = _replace(_IPV4, _hide_address, "ip", line, counts)
    if line.count(":") >= 2:
        line = _replace(_IPV6, _hide_address, "ip", line, counts)
    if _SEVEN_DIGITS.search(line):
        line = _redact_phones(line, region, counts)
    return line, tuple(counts.items())


def _replace(
    pattern: re.Pattern[str], substitute: Callable[[re.Match[str]], str], kind: str, text: str, counts: Counter[str]
) -> str:
    def count(match: re.Match[str]) -> str:
        replacement = substitute(match)
        if replacement != match[0]:
            counts[kind] += 1
        return replacement

    return pattern.sub(count, text)


def _hide_value(match: re.Match[str]) -> str:
    if match["value"].startswith(("http://", "https://")):
        return match[0]
    return match["name"] + "[SECRET]"


def _hide_card(match: re.Match[str]) -> str:
    digits = re.sub(r"[ -]", "", match[0])
    # First digits of the card schemes (ISO/IEC 7812): Mastercard 2 and 5, Amex 3, Visa 4, Discover and others 6.
    return "[CARD]" if digits[0] in "23456" and luhn.is_valid(digits) and len(set(digits)) > 1 else match[0]


def _hide_address(match: re.Match[str]) -> str:
    tail = match[0][len(match[0].rstrip(".:")) :] if not match[0].endswith("::") else ""
    candidate = match[0][: len(match[0]) - len(tail)]
    try:
        address = ipaddress.ip_address(candidate)
    except ValueError:
        return match[0]
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        return match[0]
    return "[IP]" + tail


def _redact_phones(line: str, region: str, counts: Counter[str]) -> str:
    pieces, end = [], 0
    for match in phonenumbers.PhoneNumberMatcher(line, region, leniency=phonenumbers.Leniency.POSSIBLE):
        written_as_phone = any(mark in match.raw_string.strip() for mark in " -().+")
        if _IPV4.search(match.raw_string):
            continue
        if not written_as_phone and not phonenumbers.is_valid_number(match.number):
            continue
        pieces += [line[end : match.start], "[PHONE]"]
        end = match.end
        counts["phone"] += 1
    return "".join([*pieces, line[end:]])
