"""Texts with what must go planted in them, and texts with what must stay: for the tests and the benchmark of redaction.

Everything is drawn by the given `random.Random`, in the ways in which people, programs and models write it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import phonenumbers
from mnemonic import Mnemonic
from stdnum import luhn
from stdnum.iso7064 import mod_97_10

from reasoning.redaction.secret_rules import SECRET_RULES, fill

ALNUM = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
Make = Callable[[random.Random], str]


def _chars(rng: random.Random, length: int, alphabet: str = ALNUM) -> str:
    return "".join(rng.choices(alphabet, k=length))


def _hex(rng: random.Random, length: int) -> str:
    return _chars(rng, length, "0123456789abcdef")


def _digits(rng: random.Random, length: int) -> str:
    return _chars(rng, length, "0123456789")


# ---- what must go ----


def _password(rng: random.Random) -> str:
    makers: list[Callable[[], str]] = [
        lambda: f"hunter{rng.randrange(10)}-{_digits(rng, 4)}",
        lambda: _chars(rng, rng.randrange(8, 20), ALNUM + "!#%^*_+-"),
        lambda: f"{rng.choice(['Summer', 'Dragon', 'Monkey', 'letmein'])}{rng.randrange(1990, 2030)}!",
        lambda: _chars(rng, 16) + "==",
        lambda: f"Tr0ub4dor{rng.randrange(100)}",
    ]
    return rng.choice(makers)()


def _card(rng: random.Random, prefixes: tuple[str, ...], length: int, separators: tuple[str, ...]) -> str:
    prefix = rng.choice(prefixes)
    body = prefix + _digits(rng, length - len(prefix) - 1)
    number = body + luhn.calc_check_digit(body)
    separator = rng.choice(separators)
    if length == 15:
        return separator.join((number[:4], number[4:10], number[10:]))
    if length == 14:
        return separator.join((number[:4], number[4:10], number[10:]))
    return separator.join(number[i : i + 4] for i in range(0, length, 4))


def _iban(rng: random.Random, style: str) -> str:
    makers: list[tuple[str, Callable[[], str]]] = [
        ("DE", lambda: _digits(rng, 18)),
        ("GB", lambda: "WEST" + _digits(rng, 14)),
        ("NL", lambda: "ABNA" + _digits(rng, 10)),
        ("PL", lambda: _digits(rng, 24)),
        ("AT", lambda: _digits(rng, 16)),
        ("CH", lambda: _digits(rng, 17)),
    ]
    country, make = rng.choice(makers)
    bban = make()
    number = f"{country}{mod_97_10.calc_check_digits(bban + country)}{bban}"
    if "spaced" in style:
        number = (" " if "nbsp" not in style else "\u00a0").join(number[i : i + 4] for i in range(0, len(number), 4))
    return number.lower() if "lower" in style else number


def _phone(rng: random.Random, form: int, regions: tuple[str, ...]) -> str:
    region = rng.choice(regions)
    kind = rng.choice([phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE])
    number = phonenumbers.example_number_for_type(region, kind)
    assert number is not None
    return phonenumbers.format_number(number, form)


_WIDE = (
    "GB",
    "DE",
    "FR",
    "IT",
    "ES",
    "AU",
    "JP",
    "IN",
    "BR",
    "NL",
    "PL",
    "CH",
    "SE",
    "ZA",
    "TR",
    "KR",
    "NG",
    "MX",
    "CN",
)
_TRUNK = ("GB", "FR", "AU", "JP", "NL", "CH", "SE", "ZA", "KR", "DE", "BE", "AT")


def _nanp(rng: random.Random) -> str:
    a, b, c = (
        f"{rng.randrange(2, 10)}{rng.randrange(0, 9)}{rng.randrange(10)}",
        rng.randrange(200, 999),
        _digits(rng, 4),
    )
    return rng.choice(
        [f"({a}) {b}-{c}", f"{a}-{b}-{c}", f"{a}.{b}.{c}", f"1-{a}-{b}-{c}", f"{a} {b} {c}", f"({a}){b}-{c}"]
    )


def _email(rng: random.Random) -> str:
    name = rng.choice(["bob", "ada.lovelace", "j_doe", "o'neil", "x+tag", "info", "k.müller", "kwame99"])
    return f"{name}@{rng.choice(['example.com', 'mail.example.co.uk', 'sub.corp.example.org', 'acme.io', 'gmail.com'])}"


def _email_international(rng: random.Random) -> str:
    return rng.choice(
        ["用户@例子.广告", "иван@пример.рф", "jörg@müller.de", "josé.garcía@correo.es", "δοκιμή@παράδειγμα.ελ", "bob@xn--mller-kva.de",
         "अजय@डाटा.भारत", "ada@bücher.example", "nguyễn@thư.vn", "søren@færøerne.dk"]
    )  # fmt: skip


def _wif(rng: random.Random) -> str:
    return _base58(b"\x80" + rng.randbytes(32) + b"\x01")


def _base58(data: bytes) -> str:
    data += hashlib.sha256(hashlib.sha256(data).digest()).digest()[:4]
    number, text = int.from_bytes(data, "big"), ""
    while number:
        number, rest = divmod(number, 58)
        text = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[rest] + text
    return text


def _seed_phrase(rng: random.Random) -> str:
    return Mnemonic("english").to_mnemonic(rng.randbytes(rng.choice([16, 20, 24, 28, 32])))


def _pem(rng: random.Random) -> str:
    kind = rng.choice(["RSA ", "EC ", "OPENSSH ", "", "ENCRYPTED "])
    body = "\n".join(_chars(rng, 64) for _ in range(3))
    return f"-----BEGIN {kind}PRIVATE" + f" KEY-----\n{body}\n-----END {kind}PRIVATE" + " KEY-----"


def _rule_example(name: str) -> Make:
    template = next(rule.example for rule in SECRET_RULES if rule.name == name)

    def make(rng: random.Random) -> str:
        # Drawn anew, in the same alphabets, with a digit in it.
        import re

        alphabets = {"A": ALNUM, "H": "0123456789abcdef", "D": "0123456789", "U": "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
                     "L": "abcdefghijklmnopqrstuvwxyz0123456789"}  # fmt: skip
        return re.sub(r"\{([AHDUL])([0-9]+)\}", lambda m: "7" + _chars(rng, int(m[2]) - 1, alphabets[m[1]]), template)

    return make


# Values that tell what they are wherever they stand.
TELLING: dict[str, Make] = {
    **{f"issued: {rule.name}": _rule_example(rule.name) for rule in SECRET_RULES},
    "card: in blocks": lambda rng: _card(rng, ("4", "51", "55", "2221", "6011"), 16, (" ", "-")),
    "card: dotted": lambda rng: _card(rng, ("4", "52"), 16, (".",)),
    "card: no-break spaces or Unicode dashes": lambda rng: _card(rng, ("4", "53"), 16, ("\u00a0", "\u2011", "\u2013", "\u2009")),
    "card: bare": lambda rng: _card(rng, ("4", "54", "2720", "65"), 16, ("",)),
    "card: american express": lambda rng: _card(rng, ("34", "37"), 15, (" ", "-", "")),
    "card: diners": lambda rng: _card(rng, ("36", "38"), 14, (" ", "")),
    "iban: bare": lambda rng: _iban(rng, ""),
    "iban: spaced": lambda rng: _iban(rng, "spaced"),
    "iban: lower case": lambda rng: _iban(rng, "lower"),
    "iban: lower case, spaced": lambda rng: _iban(rng, "lower spaced"),
    "iban: no-break spaces": lambda rng: _iban(rng, "spaced nbsp"),
    "ssn": lambda rng: f"{rng.randrange(100, 665):03}-{rng.randrange(1, 99):02}-{rng.randrange(1, 9999):04}",
    "phone: international": lambda rng: _phone(rng, phonenumbers.PhoneNumberFormat.INTERNATIONAL, _WIDE),
    "phone: E.164": lambda rng: _phone(rng, phonenumbers.PhoneNumberFormat.E164, _WIDE),
    "phone: north american": _nanp,
    "phone: national, with a trunk zero": lambda rng: _phone(rng, phonenumbers.PhoneNumberFormat.NATIONAL, _TRUNK),
    "email": _email,
    "email: international": _email_international,
    "ip: 4": lambda rng: f"{rng.randrange(11, 126)}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}",
    "ip: 6": lambda rng: f"2001:db8:{_hex(rng, 4)}::{_hex(rng, 3)}{rng.randrange(10)}:7334",
    "wallet: WIF": _wif,
    "wallet: extended key": lambda rng: _base58(b"\x04\x88\xad\xe4" + rng.randbytes(74)),
}  # fmt: skip

# Values that only their place tells: the text, with the secret between two signs that occur nowhere else.
PLACED: dict[str, Make] = {
    "password: env file": lambda r: f"{r.choice(['DB', 'POSTGRES', 'APP', 'ADMIN'])}_PASSWORD=«{_password(r)}»",
    "password: env file, quoted": lambda r: f'export DB_PASSWORD="«{_password(r)}»"',
    "password: yaml": lambda r: f"{r.choice(['password', 'db_password', 'smtpPassword'])}: «{_password(r)}»",
    "password: yaml, quoted": lambda r: f"  password: '«{_password(r)}»'",
    "password: code": lambda r: f"{r.choice(['password', 'passwd', 'db_pass', 'pwd'])} = \"«{_password(r)}»\"",
    "password: keyword": lambda r: f"connect(host='db', user='app', password='«{_password(r)}»')",
    "password: prose": lambda r: f"{r.choice(['my password is', 'the password:', 'Password is', 'pw:'])} «{_password(r)}»",
    "password: option": lambda r: f"tool login --user bob --password «{_password(r).replace('!', '1').lstrip('-')}» --yes",
    "password: option with =": lambda r: f"tool --password=«{_password(r)}»",
    "password: mysql": lambda r: f"mysql -u root -p«{_chars(r, 12)}» app",
    "password: curl": lambda r: f"curl -u bob:«{_chars(r, 12)}» https://example.com/x",
    "password: netrc": lambda r: f"machine example.com login bob password «{_chars(r, 12)}»",
    "password: sql": lambda r: f"CREATE USER app IDENTIFIED BY '«{_password(r)}»';",
    "password: xml": lambda r: f"<password>«{_chars(r, 10)}»</password>",
    "password: table": lambda r: f"| password | «{_password(r)}» |",
    "password: connection string": lambda r: f"Server=db;User Id=sa;Password=«{_chars(r, 12)}»;Encrypt=true",
    "password: weak": lambda r: f'{{"user": "bob", "password": "«{r.choice(["secret", "letmein", "a b c d", "1"])}»"}}',
    "password: python dictionary": lambda r: f"{{'user': 'bob', 'password': '«{_password(r)}»'}}",
    "url: password": lambda r: f"postgres://app:«{_chars(r, 12)}»@db.example.com:5432/x",
    "url: password alone": lambda r: f"redis://:«{_chars(r, 10)}»@cache:6379/0",
    "url: password with / or @": lambda r: f"amqp://u:«{_chars(r, 5)}{r.choice('/@')}{_chars(r, 5)}»@mq.example.com/v",
    "url: token=": lambda r: f"https://example.com/cb?user=1&{r.choice(['token', 'access_token', 'api_key', 'apikey'])}=«{_chars(r, 24)}»&x=1",
    "azure: SAS": lambda r: f"https://acct.blob.core.windows.net/c/b?sv=2022-11-02&sig=«{_chars(r, 40)}%3D»&se=2026",
    "azure: AccountKey": lambda r: f"AccountName=x;AccountKey=«{_chars(r, 86)}==»;EndpointSuffix=core.windows.net",
    "azure: SharedAccessKey": lambda r: f"Endpoint=sb://x/;SharedAccessKeyName=n;SharedAccessKey=«{_chars(r, 43)}=»",
    "header: bearer": lambda r: f"Authorization: Bearer «{_chars(r, 32)}»",
    "header: basic": lambda r: f"Authorization: Basic «{base64.b64encode(('bob:' + _chars(r, 12)).encode()).decode()}»",
    "header: api key": lambda r: f"X-Api-Key: «{_hex(r, 32)}»",
    "header: cookie": lambda r: f"Cookie: «sessionid={_hex(r, 32)}»",
    "refresh_token": lambda r: f'{{"refresh_token": "«{_chars(r, 40)}»", "expires_in": 3600}}',
    "secret key of aws": lambda r: f"aws_secret_access_key = «{_chars(r, 38)}7/»",
    "client_secret": lambda r: f"client_secret: «{_hex(r, 32)}»",
    "docker auth": lambda r: f'{{"auths": {{"r.example.com": {{"auth": "«{base64.b64encode(_chars(r, 14).encode()).decode()}»"}}}}}}',
    "npmrc": lambda r: f"//registry.example.com/:_authToken=«{_chars(r, 36)}»",
    "kubernetes": lambda r: f'{{"name": "DB_PASSWORD", "value": "«{_password(r)}»"}}',
    "ethereum: key of a name": lambda r: f"PRIVATE_KEY=«0x{_hex(r, 64)}»",
    "ethereum: json": lambda r: f'{{"privateKey": "«{_hex(r, 64)}»"}}',
    "ethereum: prose": lambda r: f"my wallet's private key is «0x{_hex(r, 64)}»",
    "ethereum: command": lambda r: f"cast send --private-key «0x{_hex(r, 64)}» x",
    "wallet: seed phrase in prose": lambda r: f"{r.choice(['my seed phrase is', 'recovery phrase:', 'wallet backup ->'])} «{_seed_phrase(r)}»",
    "wallet: seed phrase alone": lambda r: f"«{_seed_phrase(r)}»",
    "wallet: seed phrase in a list": lambda r: "wallet: «" + json.dumps(_seed_phrase(r).split())[1:-1] + "»",
    "mnemonic: name": lambda r: f'{{"mnemonic": "«{_seed_phrase(r)}»"}}',
    "ssn: named": lambda r: f"SSN: «{r.randrange(100, 665):03}{r.randrange(1, 99):02}{r.randrange(1, 9999):04}»",
    "phone: named": lambda r: f"{r.choice(['call me at', 'Phone:', 'tel.', 'my mobile is'])} «{r.choice('23456789')}15{r.randrange(2, 9)}5{_digits(r, 5)}»",
    "phone: json": lambda r: f'{{"phone": "«415{r.randrange(2, 9)}55{_digits(r, 4)}»"}}',
    "phone: german, named": lambda r: f"Telefon: «030/{r.randrange(2, 9)}{_digits(r, 6)}»",
    "phone: indian, named": lambda r: f"WhatsApp: «98{_digits(r, 3)} {_digits(r, 5)}»",
    "pem": lambda r: "«" + _pem(r) + "»",
}  # fmt: skip

_FRAMES: tuple[Callable[[random.Random, str], str], ...] = (
    lambda rng, it: f"Hi, it is {it} and thanks!",
    lambda rng, it: f"please note: {it}, then go on.",
    lambda rng, it: it,
    lambda rng, it: f"line one\n{it}\nline three",
    lambda rng, it: json.dumps({"tool": "write", "content": f"# config\n{it}\nend"}),
    lambda rng, it: json.dumps({"role": "user", "content": it}, ensure_ascii=False),
    lambda rng, it: json.dumps({"arguments": json.dumps({"text": f"a\n{it}\tb"})}),
    lambda rng, it: json.dumps({"a": json.dumps({"b": json.dumps({"c": f"{it}\n"})})}),
    lambda rng, it: f"<tool_response>\n{json.dumps({'stdout': it, 'code': 0})}\n</tool_response>",
    lambda rng, it: (
        f"<tool_call>\n{json.dumps({'name': 'Bash', 'arguments': {'command': f'echo {it}'}})}\n</tool_call>"
    ),
    lambda rng, it: f"| user | {it} | yes |",
    lambda rng, it: f"value: {it}",
    lambda rng, it: f"x = '{it}'",
    lambda rng, it: f"2026-11-28T07:25:00Z INFO worker[42] got ({it})",
    lambda rng, it: f"- {it}\n- another",
    lambda rng, it: f"a, {it}, b",
)
# A place is a line or a string of its own: `echo A=b` would be another place.
_WHOLE_FRAMES = (2, 3, 4, 5, 6, 7, 8)


def draw_positives(rng: random.Random, each: int) -> Iterator[tuple[str, str, str]]:
    """(kind, text, what must not be in it any more): `each` of every kind."""
    for kind, make in TELLING.items():
        for _ in range(each):
            value = make(rng)
            yield kind, rng.choice(_FRAMES)(rng, value), value
    for kind, make in PLACED.items():
        for _ in range(each):
            marked = make(rng)
            before, value, after = marked.replace("»", "«").split("«")
            yield kind, _FRAMES[rng.choice(_WHOLE_FRAMES)](rng, before + value + after), value


# ---- what must stay ----


def _moment(rng: random.Random) -> datetime:
    return datetime(1995, 1, 1, tzinfo=UTC) + timedelta(seconds=rng.randrange(10**9), microseconds=rng.randrange(10**6))


def _uuid7(rng: random.Random) -> str:
    at = int(_moment(rng).timestamp() * 1000)
    return str(uuid.UUID(int=(at << 80) | (7 << 76) | (rng.getrandbits(12) << 64) | (2 << 62) | rng.getrandbits(62)))


_DATES = (
    "%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%Y%m%d", "%d-%m-%Y", "%d.%m.%Y %H:%M", "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%f+00:00", "%d %b %Y %H:%M:%S", "%a, %d %b %Y %H:%M:%S +0000", "%Y%m%dT%H%M%S",
    "%Y%m%d%H%M%S", "%d.%m.%y %H:%M", "%H:%M:%S.%f", "%Y-%m-%d-%H-%M-%S", "%Y_%m_%d_%H%M", "%b %d, %Y", "%Y.%m.%d",
)  # fmt: skip

STAYS: dict[str, Make] = {
    "uuid 4": lambda r: str(uuid.UUID(int=r.getrandbits(128), version=4)),
    "uuid 1": lambda r: str(uuid.UUID(int=r.getrandbits(128), version=1)),
    "uuid 7": _uuid7,
    "uuid, bare": lambda r: _hex(r, 32),
    "sha 1": lambda r: _hex(r, 40),
    "sha 256": lambda r: r.choice(["sha256:", ""]) + _hex(r, 64),
    "short sha": lambda r: _hex(r, r.choice([7, 8, 12])),
    "transaction hash": lambda r: f"tx 0x{_hex(r, 64)}",
    "address of a wallet": lambda r: f"0x{_hex(r, 40)}",
    "date": lambda r: _moment(r).strftime(r.choice(_DATES)),
    "date, time zone": lambda r: _moment(r).strftime("%Y-%m-%d %H:%M:%S.%f") + r.choice(["+02:00", " UTC", "-0500"]),
    "epoch": lambda r: str(int(_moment(r).timestamp() * r.choice([1, 1000, 10**6, 10**9]))),
    "epoch, fraction": lambda r: f"{_moment(r).timestamp():.6f}",
    "amount": lambda r: r.choice([f"${r.randrange(10**9):,}.{_digits(r, 2)}", f"{r.randrange(10**10):,} EUR", f"€{r.randrange(10**7)}",
                                  f"{r.randrange(10**6)}.{_digits(r, 8)} ETH", f"{r.randrange(1, 999)} {_digits(r, 3)} {_digits(r, 3)},00 kr"]),
    "version": lambda r: f"{r.choice(['v', '', 'version '])}{r.randrange(30)}.{r.randrange(200)}.{r.randrange(20000)}{r.choice(['', '-rc1', '+build.5', 'b2'])}",
    "version of four": lambda r: f"Chrome/{r.randrange(90, 140)}.0.{r.randrange(9999)}.{r.randrange(250)}",
    "order number": lambda r: f"order {r.choice(['', '#', 'no. '])}{r.choice('123456789')}{_digits(r, r.randrange(7, 13))}",
    "order number, dashed": lambda r: f"order {_digits(r, 3)}-{_digits(r, 7)}-{_digits(r, 7)}",
    "number of ten, bare": lambda r: f"{r.choice('123456789')}{_digits(r, 9)}",
    "number of eleven, bare": lambda r: f"{r.choice('123456789')}{_digits(r, 10)}",
    "tracking number": lambda r: r.choice([f"1Z{_chars(r, 6, 'ABCDEFGH0123456789')}{_digits(r, 10)}", f"tracking {_digits(r, 12)}", f"JJD{_digits(r, 18)}", f"RR{_digits(r, 9)}DE"]),
    "isbn": lambda r: f"978-{r.randrange(0, 9)}-{_digits(r, 2)}-{_digits(r, 6)}-{_digits(r, 1)}",
    "isbn, bare": lambda r: f"ISBN 978{_digits(r, 10)}",
    "issn, doi": lambda r: r.choice([f"ISSN {_digits(r, 4)}-{_digits(r, 4)}", f"doi:10.{_digits(r, 4)}/{_digits(r, 7)}.{_digits(r, 6)}", f"arXiv:2{_digits(r, 3)}.{_digits(r, 5)}"]),
    "coordinates": lambda r: f"{r.uniform(-90, 90):.6f}, {r.uniform(-180, 180):.6f}",
    "log line": lambda r: f"[{_moment(r):%Y-%m-%d %H:%M:%S,%f}] worker-{r.randrange(99)} pid={r.randrange(99999)} took {r.randrange(10**6)}ms, {r.randrange(10**8)} bytes",
    "access log": lambda r: f'"GET /api/v2/items/{_digits(r, 8)} HTTP/1.1" 200 {r.randrange(10**6)} "-" {r.random():.4f}',
    "identifier with a date": lambda r: f"{r.choice(['hosted-eu', 'build', 'backup', 'run', 'snap'])}-{_moment(r):%Y%m%d}-{_digits(r, 2)}",
    "identifier like a phone": lambda r: f"{r.choice(['job', 'sku', 'ref', 'INV'])}-{_digits(r, 3)}-{_digits(r, 3)}-{_digits(r, 4)}",
    "port, size": lambda r: r.choice([f"localhost:{r.randrange(1024, 65535)}", f"0.0.0.0:{r.randrange(1024, 65535)}", f"{r.randrange(10**9)} bytes", f"{r.randrange(10**4)}.{_digits(r, 2)} MB"]),
    "cidr": lambda r: r.choice(["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", f"10.{r.randrange(255)}.0.0/16", "2001:db8::/32", "100.64.0.0/10"]),
    "cve, rfc": lambda r: r.choice([f"CVE-20{_digits(r, 2)}-{_digits(r, 5)}", f"RFC {_digits(r, 4)}", f"PEP {_digits(r, 3)}", f"GHSA-{_chars(r, 4, 'abcdfgh')}-{_chars(r, 4, 'abcdfgh')}-{_chars(r, 4, 'abcdfgh')}", f"KB{_digits(r, 7)}"]),
    "mathematics": lambda r: r.choice([f"{r.randrange(10**6)} + {r.randrange(10**6)} = {r.randrange(10**7)}", f"({r.randrange(999)} - {r.randrange(999)}) / {r.randrange(9999)}", f"x = {r.random():.12f}", f"{r.random() * 1e6:.3e}", f"range({r.randrange(10**7)}, {r.randrange(10**7)})"]),
    "json of numbers": lambda r: json.dumps({"prompt_tokens": r.randrange(10**5), "max_tokens": r.randrange(10**4), "created": int(_moment(r).timestamp()), "id": r.randrange(10**9)}),
    "json of coordinates": lambda r: json.dumps({"bbox": [r.randrange(2000) for _ in range(4)], "lat": round(r.uniform(-90, 90), 7), "embedding": [round(r.uniform(-1, 1), 6) for _ in range(6)]}),
    "token names": lambda r: r.choice(['{"max_tokens": 4096, "token_count": 5}', "tokens: 128000", '"token_type": "bearer"', "next_page_token: null", '"secret": null', '"secret": false', '"password": ""', "pad_token = '<pad>'", "num_tokens=512"]),
    "code with passwords": lambda r: r.choice(
        ["def login(user: str, password: str) -> bool:", 'password = os.environ["PASSWORD"]', "password=args.password", "const token = await getToken(user);",
         "token = tokenizer.next_token()", "if password is None:", 'raise ValueError("password is required")', "self.api_key = api_key", "api_key=settings.OPENAI_API_KEY",
         "export TOKEN=$GITHUB_TOKEN", "password: ${DB_PASSWORD}", "secretKeyRef:", "key = keys[0]", "token: Optional[str] = None", "Authorization: Bearer <token>",
         "password: {{ vault.db }}", "access_token: string;", "def hash_password(password, salt):", "for token in tokens:", "password=password, timeout=30)",
         "SELECT password FROM users", "the password is too short", "enter your password:", "Forgot password?", "secret santa is on friday", "passwords must match"]),
    "base64 of a picture": lambda r: "data:image/png;base64,iVBORw0KGgo" + base64.b64encode(r.randbytes(300)).decode(),
    "base64": lambda r: base64.b64encode(r.randbytes(r.randrange(12, 60))).decode(),
    "code": lambda r: r.choice([f"arr[{r.randrange(10**6)}:{r.randrange(10**6)}]", f"0x{_hex(r, 8)} 0x{_hex(r, 16)}", "std::vector<int>::iterator it", "a::b::c", f"#{_hex(r, 6)}", f"\\u{_hex(r, 4)}", f"@pytest.mark.parametrize('n', [{_digits(r, 7)}])", "git@github.com:acme/project.git", "npm i @types/node@20.1.0 left-pad@1.3.0", "icon@2x.png", f"U+{_hex(r, 4).upper()}", "uses: actions/checkout@v4"]),
    "hex dump": lambda r: " ".join(_hex(r, 2) for _ in range(16)),
    "digits in blocks": lambda r: " ".join(_digits(r, 4) for _ in range(5)),
    "table of numbers": lambda r: " ".join(str(r.randrange(10**5)) for _ in range(8)),
    "mac address": lambda r: ":".join(_hex(r, 2) for _ in range(6)),
    "time": lambda r: r.choice([f"{r.randrange(24):02}:{r.randrange(60):02}:{r.randrange(60):02}", f"{r.randrange(24)}.{r.randrange(60):02} h", f"00:{r.randrange(60):02}:{r.randrange(60):02},{_digits(r, 3)} --> 00:59:59,{_digits(r, 3)}", "9-5, Mon-Fri"]),
    "id of a message": lambda r: f"{r.choice(['id', 'message_id', 'channel', 'tweet'])}: 1{_digits(r, 17)}",
    "id of a service": lambda r: f"{r.choice(['msg_', 'toolu_', 'call_', 'chatcmpl-', 'req_', 'resp_', 'run-', 'i-', 'vol-', 'sg-'])}{_chars(r, r.choice([17, 24]))}",
    "model": lambda r: r.choice(["claude-sonnet-4-20250514", "gpt-4o-2024-08-06", "meta-llama/Llama-3.3-70B-Instruct", "qwen2.5-coder-32b-instruct-q4_K_M", "sk-learn-from-examples-and-more", "text-embedding-3-large"]),
    "score, share": lambda r: f"{r.random():.10f} ({r.randrange(100)}.{_digits(r, 4)} %)",
    "phone-less prose": lambda r: f"room {_digits(r, 3)}, floor {_digits(r, 1)}, {_digits(r, 2)} people, {_digits(r, 5)} steps since {r.randrange(1900, 2026)}",
    "postal": lambda r: r.choice([f"{_digits(r, 5)}-{_digits(r, 4)} Springfield", f"{_digits(r, 5)} Berlin", f"SW1A {r.randrange(9)}AA", f"PO Box {_digits(r, 6)}"]),
    "range": lambda r: f"pages {r.randrange(100)}-{r.randrange(100, 999)}, years {r.randrange(1900, 1950)}-{r.randrange(1950, 2026)}, {_digits(r, 4)}-{_digits(r, 4)}",
    "diff": lambda r: f"@@ -{r.randrange(9999)},{r.randrange(99)} +{r.randrange(9999)},{r.randrange(99)} @@ index {_hex(r, 7)}..{_hex(r, 7)} 100644",
    "path": lambda r: f"/var/log/{_moment(r):%Y/%m/%d}/app-{_digits(r, 10)}.log",
    "url": lambda r: f"https://example.com/items/{_digits(r, 10)}?page={r.randrange(99)}&since={int(_moment(r).timestamp())}#L{r.randrange(999)}",
    "seed-like prose": lambda r: " ".join(r.choices(Mnemonic("english").wordlist[:400], k=9)) + " because they were there",
}  # fmt: skip

_STAY_FRAMES: tuple[Callable[[str], str], ...] = (
    lambda it: it,
    lambda it: f"It was {it} yesterday.",
    lambda it: f"see {it}, please",
    lambda it: f"value: {it}",
    lambda it: f"({it})",
    lambda it: json.dumps({"value": it}),
    lambda it: json.dumps({"arguments": json.dumps({"text": f"a\n{it}\n"})}),
    lambda it: f"| a | {it} | b |",
    lambda it: f"Ada: {it}",
    lambda it: f"x = '{it}'",
    lambda it: f"<tool_response>\n{it}\n</tool_response>",
)


def draw_negatives(rng: random.Random, each: int) -> Iterator[tuple[str, str]]:
    """(kind, text that must stay as it is): `each` of every kind."""
    for kind, make in STAYS.items():
        for _ in range(each):
            yield kind, rng.choice(_STAY_FRAMES)(make(rng))


def examples() -> Iterator[tuple[str, str, str]]:
    """(name, an example that must go, a near miss that must stay) of every rule for an issuer's credentials."""
    for rule in SECRET_RULES:
        yield rule.name, fill(rule.example), fill(rule.near_miss)


def is_gone(text: str, clean: str, value: str) -> bool:
    """Is a planted value gone in every form, and is JSON still JSON?"""
    forms, escaped = {value, json.dumps(value, ensure_ascii=False)[1:-1]}, value
    for _ in range(4):
        escaped = json.dumps(escaped)[1:-1]
        forms.add(escaped)
    if any(form in clean for form in forms):
        return False
    if not text.startswith(("{", "[")):
        return True
    try:
        json.loads(text)
    except ValueError:
        return True
    try:
        json.loads(clean)
    except ValueError:
        return False
    return True
