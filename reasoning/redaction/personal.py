"""Where personal data stand in a text: e-mail addresses, phone numbers, cards, IBANs, social security numbers, IP
addresses.

Check digits and numbering plans decide, and where these leave a doubt, the words around: ten digits are a phone
number after `call`, and an order number after `order`. Texts come with their escapes resolved, other blanks and
dashes made plain.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from functools import lru_cache

import phonenumbers
import re2
from stdnum import iban, luhn

from reasoning.redaction.credentials import Span

# Each address is read from its `@`: back over 64 characters at most, and on over its domain.
_LOCAL = re.compile(
    r"(?:[A-Za-z0-9._%+&'*=!?^{|}~$#/-]|[^\x00-\x7f\s\u2000-\u206f\u3000-\u303f\uff00-\uffef«»\ue000-\uf8ff])++"
)
_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9-]|[^\x00-\x7f\s\u2000-\u206f\u3000-\u303f\uff00-\uffef«»\ue000-\uf8ff])++"
    r"(?:\.(?:[A-Za-z0-9-]|[^\x00-\x7f\s\u2000-\u206f\u3000-\u303f\uff00-\uffef«»\ue000-\uf8ff])++){1,10}+"
)
_TOP = re.compile(r"xn--[A-Za-z0-9-]+|[A-Za-z]{2,24}(?![A-Za-z0-9_-])|[^\x00-\x7f]{1,24}")
# Names of files (`icon@2x.png`), and a login that is no one's (`git@github.com:owner/project`).
_FILES = frozenset(
    """
    png jpg jpeg gif svg webp js ts py css json yaml yml txt lock toml tgz gz html htm tsx jsx
    """.split()  # noqa: SIM905
)
_GIT = re.compile(r":(?!//)[\w~/.-]")
_CARD = re.compile(r"(?<![\w.+$€£#@=/-])(?<!\d[ ,:])[0-9](?:[ .-]{0,2}[0-9]){12,18}(?![\w/@]|[.,:-][0-9]|-[A-Za-z])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?=[ -]?[A-Za-z0-9])")
_SSN = re.compile(
    r"(?<![\w.+/-])(?!000|666|9)([0-9]{3})([- ])(?!00)[0-9]{2}\2(?!0000)[0-9]{4}(?![\w/]|[.,:-][0-9]|-[A-Za-z])"
)
_SSN_BARE = re.compile(r"(?<![\w.+/-])[0-9]{9}(?![\w/]|[.,:-][0-9])")
_SSN_WORD = re2.compile(r"(?i)\bssn\b|social[ _-]?security|\bitin\b|\bsoc\.? sec")
_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w]|\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:.]{3,45}+(?![\w:])")
_PREFIX = re.compile(r"/([0-9]{1,3})(?![0-9.])")
_VERSION_BEFORE = re.compile(
    r"(?i)(?:version|ver\.?|release|build|upgrade to|==|>=|<=|~=|[a-z]/|\bv|firmware|driver|python|node|chrome|@|"
    r"\^|~)[\"': ]{0,3}$"
)

_IDENTIFIER_BEFORE = re.compile(
    r"(?i)(?:(?<![a-z])(?:order|tracking|invoice|ticket|shipment|parcel|confirmation|reference|booking|"
    r"transaction|case|"
    r"request|trace|"
    r"span|build|run|job|batch|item|product|sku|part|model|serial|account|customer|message|tweet|status|post|"
    r"thread|channel|"
    r"guild|snowflake|isbn|ean|upc|gtin|imei|issn|doi|pmid|arxiv|epoch|timestamp|time|ts|unix|nonce|block|hash|commit|"
    r"revision|port|size|bytes|count|total|id|ids|seed|offset|amount|balance|price|version|ref|pid|uid|gid|"
    r"sequence|seq|"
    r"lot|coordinates|lat|lon|lng|latitude|longitude|checksum|duration|ns|ms|us|created|updated|date|expires|exp|iat|"
    r"created_at|updated_at)|(?<=[a-z])(?-i:Id|ID|Number))(?:[ _-]?(?:number|num|no|nr|id|ids|code|key|at|time|ms|ns|"
    r"us))?\.?[\"'\uE001-\uE009]?[ ]?[:=#(\[]{0,2}[ #\"'\uE001-\uE009]{0,3}$"
)


def find_personal(text: str, region: str) -> Iterator[Span]:
    """Where personal data stand, in the order of trust. `region` (ISO 3166) reads numbers without a country code."""
    if "@" in text:
        yield from find_emails(text)
    if not _ANY_DIGITS.search(text):
        return
    yield from find_ibans(text)
    yield from find_cards(text)
    yield from find_ssns(text)
    yield from find_addresses(text)
    yield from find_phones(text, region)


_ANY_DIGITS = re.compile(r"[0-9][^\n]?[0-9]|::")


def find_emails(text: str) -> Iterator[Span]:
    """E-mail addresses, also of other alphabets; not names of files, versions or logins of repositories."""
    at, done = text.find("@"), 0
    while at >= 0:
        end = _end_of_domain(text, at + 1)
        begin = _begin_of_local(text, max(done, at - 64), at)
        if end > 0 and begin < at and not (text[begin:at] == "git" and _GIT.match(text, end)):
            yield Span(begin, end, "email")
            done = end
        at = text.find("@", max(at + 1, done))


def _begin_of_local(text: str, lowest: int, at: int) -> int:
    taken = _LOCAL.match(text[lowest:at][::-1])
    if taken is None:
        return at
    local = taken[0][::-1]
    # Of `?email=bob@x.org` and `https://x/bob@y.org` only what follows the last sign that few addresses have.
    local = local[max(local.rfind(sign) for sign in "=/?&|{}") + 1 :].lstrip("'.!*^~$#")
    return at - len(local)


def _end_of_domain(text: str, start: int) -> int:
    """Where the domain at `start` ends, 0 if there is none."""
    found = _DOMAIN.match(text, start, start + 260)
    if found is None:
        return 0
    labels = found[0].split(".")
    if any(label.startswith("-") for label in labels) or re.fullmatch("[0-9]x", labels[0]):
        return 0
    end = found.end()
    while len(labels) > 1:
        top = _TOP.match(labels[-1])
        if top is not None:
            end -= len(labels[-1]) - top.end()
            following = text[end : end + 1]
            is_name = labels[-1].lower() in _FILES or (following.isascii() and following in "_(" and following != "")
            return 0 if is_name else end
        end -= len(labels.pop()) + 1
        if re.search("[0-9]", text[end : end + 2]):  # a version: `package@1.2.rc1`
            return 0
    return 0


def find_ibans(text: str) -> Iterator[Span]:
    """IBANs in either case, in blocks or not, confirmed by country, length and check digits."""
    for match in _IBAN.finditer(text):
        letters, at = "", match.start()
        while at < len(text) and len(letters) < 34:
            if text[at].isascii() and text[at].isalnum():
                letters += text[at]
            elif text[at] not in " -" or (at + 1 < len(text) and not text[at + 1].isalnum()):
                break
            at += 1
            following = text[at : at + 1]
            if len(letters) >= 15 and not (following.isascii() and following.isalnum()) and _is_iban(letters):
                yield Span(match.start(), at, "iban")
                break


@lru_cache(maxsize=4_096)
def _is_iban(letters: str) -> bool:
    return bool(iban.is_valid(letters.upper()))


def find_cards(text: str) -> Iterator[Span]:
    """Payment cards: an issuer's range, its length, and the check digit."""
    for match in _CARD.finditer(text):
        written = match[0]
        digits = re.sub(r"[^0-9]", "", written)
        if not _is_card(digits) or len(set(digits)) < 2:
            continue
        separators = set(written) - set("0123456789")
        if len(separators) > 1 or (separators and not _is_in_blocks(written, text[match.end() : match.end() + 7])):
            continue
        if not separators and _IDENTIFIER_BEFORE.search(text, max(0, match.start() - 40), match.start()):
            continue
        yield Span(match.start(), match.end(), "card")


def _is_in_blocks(written: str, following: str) -> bool:
    blocks = [len(block) for block in re.split(r"[ .-]+", written)]
    # Five blocks and more are a table of numbers, not a card.
    return blocks in _BLOCKS and not re.match(r"[ -][0-9]{4,6}(?![0-9/])", following)


_BLOCKS = (
    [4, 4, 4, 4],
    [4, 6, 5],
    [4, 6, 4],
    [4, 4, 4, 4, 3],
    [4, 3, 3, 3],
    [4, 4, 4, 1],
    [4, 4, 4, 4, 2],
    [6, 13],
    [4, 4, 5],
    [4, 4, 4, 3],
)


def _is_card(digits: str) -> bool:
    # ISO/IEC 7812 ranges of the schemes, with the lengths that they issue.
    four, length = int(digits[:4]), len(digits)
    two = four // 100
    issued = (
        (digits[0] == "4" and length in (13, 16, 19))
        or (length == 16 and (51 <= two <= 55 or 2221 <= four <= 2720))
        or (length == 15 and two in (34, 37))
        or (length in (16, 19) and (four == 6011 or 6440 <= four <= 6599 or two == 65))
        or (length in (14, 16, 19) and (3000 <= four <= 3059 or two in (36, 38, 39)))
        or (length in (16, 19) and 3528 <= four <= 3589)
        or (length in (16, 17, 18, 19) and two == 62)
        or (length in (13, 15, 16, 18, 19) and four in (5018, 5020, 5038, 5893, 6304, 6759, 6761, 6762, 6763))
        or (length == 16 and 2200 <= four <= 2204)
    )
    return issued and bool(luhn.is_valid(digits))


def find_ssns(text: str) -> Iterator[Span]:
    """Social security numbers of the United States: in their blocks, or nine digits where the text names them."""
    named: bool | None = None
    for match in _SSN.finditer(text):
        if match[2] == " ":
            named = bool(_SSN_WORD.search(text)) if named is None else named
            if not named:
                continue
        if not _IDENTIFIER_BEFORE.search(text, max(0, match.start() - 40), match.start()):
            yield Span(match.start(), match.end(), "ssn")
    if named or (named is None and ("s" in text or "S" in text) and _SSN_WORD.search(text)):
        for match in _SSN_BARE.finditer(text):
            if _SSN_WORD.search(text[max(0, match.start() - 40) : match.start()]):
                yield Span(match.start(), match.end(), "ssn")


def find_addresses(text: str) -> Iterator[Span]:
    """IP addresses. Loopback, unspecified and multicast ones name no one, nor do networks (`10.0.0.0/8`)."""
    if text.count(".") >= 3:
        for match in _IPV4.finditer(text):
            if (
                _VERSION_BEFORE.search(text, max(0, match.start() - 16), match.start())
                and "//" not in text[max(0, match.start() - 3) : match.start()]
            ):
                continue
            yield from _address(text, match)
    if text.count(":") >= 2:
        for match in _IPV6.finditer(text):
            groups = match[0].split(":")
            # With a group of three digits or more, and a decimal one: `a::b` is a name in C++, 12:30:00 a time.
            if len(groups) > 2 and any(len(group) > 2 for group in groups) and any(map(str.isdigit, match[0])):
                yield from _address(text, match)


def _address(text: str, match: re.Match[str]) -> Iterator[Span]:
    tail = len(match[0]) - len(match[0].rstrip(".:")) if not match[0].endswith("::") else 0
    candidate = match[0][: len(match[0]) - tail]
    try:
        address = ipaddress.ip_address(candidate)
    except ValueError:
        return
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        return
    prefix = _PREFIX.match(text, match.end() - tail)
    if prefix and int(prefix[1]) < address.max_prefixlen:
        try:
            ipaddress.ip_network(f"{candidate}/{prefix[1]}")
            return
        except ValueError:
            pass
    yield Span(match.start(), match.end() - tail, "ip")


# Digits with what phone numbers are written with; each run is taken once, and never gone back over.
_PHONE = re.compile(
    r"(?:(?<![\w.+$€£%@&*-])(?<!\d[ ,])(?:00[ ]?(?=[1-9])|\((?=\+?[0-9]))?|(?<![\w+])(?:\+|\(\+))[ ]?\(?[0-9]"
    r"(?:[0-9]|[ ./()-]{1,3}(?=[0-9(]))*+(?:[ ]?(?:ext\.?|x|extension|#)[ ]?[0-9]{1,6})?"
)
_AFTER_PHONE = re.compile(r"[\w/@%]|[-:,.][0-9]|-[A-Za-z]|[ ]?(?:USD|EUR|GBP|JPY|€|\$|£|bytes|ms|kB|MB|GB|km|kg|%)")
_PHONE_WORD = re.compile(
    r"(?:(?:(?<![A-Za-z])(?i:phone|telephone|cellphone|mobile|cell|call|tel|telefon|tél|téléphone|teléfono|"
    r"telefono|telefone|"
    r"handy|móvil|movil|celular|whatsapp|sms|text|ring|fax|dial|reach|contact|number is|rufnummer|portable|"
    r"numéro|cellulare|"
    r"kontakt|signal|viber|msisdn|hotline|тел|телефон|handynummer|telefonnummer)|(?<=[a-z_])(?<!\bi)(?:Phone|"
    r"phone|Mobile|mobile|Tel|Fax|fax|_tel)|"
    r"電話|电话|携帯|手机)(?i:s|ing|\.|[ _-]?(?:number|num|no|nr|home|work|mobile|cell|e)){0,3}"
    r"[\"'\uE001-\uE009)\]]?[ ]?(?i:(?:me|us|him|her|them|number|num|no|nr|"
    r"back|on|at|is|under|auf|unter|au|al|to|the|my|our|office|home|work|line|anytime|today|now|mobile|cell|"
    r"phone|:|=|\||->|→|\.|-|#|\")[ \t]{0,2})"
    r"{0,6}[ \"'\uE001-\uE009:=|(\[]{0,5}|wa\.me/|whatsapp\.com/send\?phone=)$"
)
_DATE = re.compile(
    r"(?<![0-9])(?:(?:19|20)[0-9]{2}[-./ ](?:0?[1-9]|1[0-2])[-./ ](?:0?[1-9]|[12][0-9]|3[01])|(?:0?[1-9]|"
    r"[12][0-9]|3[01])[-./ ](?:0?[1-9]|[12][0-9]|3[01])[-./ ](?:19|20)[0-9]{2})(?![0-9])"
)
_NANP = re.compile(r"(?:1[-. ]?)?(?:\([2-9][0-9]{2}\)[-. ]{0,2}|[2-9][0-9]{2}[-. /]{1,2})[0-9]{3}[-. ]{1,2}[0-9]{4}")
_NANP_REGIONS = frozenset(phonenumbers.region_codes_for_country_code(1))
_REGIONS = tuple(
    """
    GB DE FR IT ES AU JP IN BR NL BE CH AT SE NO DK FI PL PT IE CN KR MX AR CL CO ZA NG KE EG TR IL AE SA RU UA CZ RO GR
    HU ID MY PH TH VN SG NZ PK BD HK TW
    """.split()  # noqa: SIM905
)


_SUMMAND = re.compile(r"\+ +[0-9]+")
_OPERAND = re.compile(r"[\w)\]] ?$")


def find_phones(text: str, region: str) -> Iterator[Span]:
    """Phone numbers: international ones, those of `region`, and others written as their country writes them."""
    for match in _PHONE.finditer(text):
        written = match[0].rstrip(" ./(-")
        if written.count(")") > written.count("(") and written.endswith(")"):
            written = written[:-1].rstrip(" ./(-")
        start, end = match.start(), match.start() + len(written)
        start += len(written) - len(written.lstrip())
        written = written.lstrip()
        digits = sum(character in "0123456789" for character in written)
        if not 7 <= digits <= 21 or _AFTER_PHONE.match(text, end):
            continue
        if written.startswith("(") and ")" not in written:
            start, written = start + 1, written[1:]
        named = bool(_PHONE_WORD.search(text, max(0, start - 60), start))
        if not named and text[max(0, start - 1) : start] == "[" and text[end : end + 1] == "]":  # a row of numbers
            continue
        if not named and _SUMMAND.fullmatch(written) and _OPERAND.search(text, max(0, start - 3), start):
            continue
        if start and text[start - 1] in "/:=#" and not named and not written.startswith("+"):
            continue
        if not named and _IDENTIFIER_BEFORE.search(text, max(0, start - 40), start):
            continue
        if (_DATE.search(written) or _IPV4.fullmatch(written)) and not written.startswith("+"):
            continue
        if _is_phone(written, region, named):
            yield Span(start, end, "phone")


@lru_cache(maxsize=8_192)
def _is_phone(written: str, region: str, named: bool) -> bool:
    separated = any(mark in written.strip() for mark in " -.()/")
    digits = sum(character in "0123456789" for character in written)
    if written.startswith(("+", "(+")) or (written.startswith("00") and (named or separated)):
        number = _parse(written if "+" in written else f"+{written[2:].lstrip()}", None)
        return number is not None and (
            phonenumbers.is_valid_number(number) or ((separated or named) and phonenumbers.is_possible_number(number))
        )
    if separated and (region in _NANP_REGIONS or "(" in written) and _NANP.fullmatch(_without_extension(written)):
        return True
    own = _parse(written, region)
    is_valid = own is not None and phonenumbers.is_valid_number(own)
    if own is not None and is_valid and (named or (_is_telling(written) and _groups(written) == _national_groups(own))):
        return True
    for other in _REGIONS:
        number = _parse(written, other)
        if number is None or not phonenumbers.is_valid_number_for_region(number, other):
            continue
        if (named and digits >= 9) or (_is_telling(written) and _groups(written) == _national_groups(number)):
            return True
    return False


def _is_telling(written: str) -> bool:
    """Is a number without words around written as only phone numbers are: with a trunk zero or an area in brackets?"""
    digits = re.sub(r"[^0-9]", "", written)
    groups = _groups(written)
    if [len(group) for group in groups] == [5, 4] and "-" in written:  # a postal code
        return False
    return len(digits) >= 9 and (
        (digits.startswith("0") and 2 <= len(groups) <= 5 and not digits.startswith("00"))
        or "(" in written
        or (len(groups) == 3 and len(digits) == 11 and digits.startswith("1") and len(groups[0]) == 3)
    )


def _without_extension(written: str) -> str:
    return re.split(r"(?i)[ ]?(?:ext|x|#)", written, maxsplit=1)[0].strip()


def _parse(written: str, region: str | None) -> phonenumbers.PhoneNumber | None:
    try:
        return phonenumbers.parse(written, region)
    except phonenumbers.NumberParseException:
        return None


def _groups(written: str) -> list[str]:
    return re.findall(r"[0-9]+", _without_extension(written))


def _national_groups(number: phonenumbers.PhoneNumber) -> list[str]:
    return re.findall(
        r"[0-9]+", phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL).split("ext")[0]
    )
