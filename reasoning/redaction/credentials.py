"""Where credentials stand in a text: by their shape, by the name that they are given to, in URLs, headers and
commands.

Texts come with their escapes resolved (`reasoning.redaction.escapes`). Patterns that may begin anywhere are RE2's,
which is linear by construction; those of `re` are tried at one place only, and cannot go back over what they have
taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import re2

from reasoning.redaction.escapes import QUOTES
from reasoning.redaction.placeholders import PLACEHOLDER
from reasoning.redaction.secret_rules import SECRET_RULES


class Span(NamedTuple):
    """What is to be replaced: from where to where, and what it is."""

    start: int
    end: int
    kind: str


def _compile(pattern: str) -> re2._Regexp:
    options = re2.Options()
    options.max_mem = 64 << 20
    options.log_errors = False
    return re2.compile(pattern, options)


_ISSUED = _compile("(?:^|[^A-Za-z0-9])(" + "|".join(rule.pattern for rule in SECRET_RULES if not rule.needs) + ")")
_ISSUED_WITH = tuple(
    (rule.needs, _compile(f"(?:^|[^A-Za-z0-9])({rule.pattern})")) for rule in SECRET_RULES if rule.needs
)
_BASE64_BEFORE = re.compile(r"[A-Za-z0-9+/]{60}")
_NOT_TOKEN = re.compile(r"[A-Za-z0-9]")

# The names that credentials are given to. Which part of a name says what, `is_secret_name` decides.
_NAME = _compile(
    r"(?i)[a-z0-9_.\-]*(?:pass|(?:api|access|private|secret|signing|encryption|wallet) key|pwd|\bpw\b|secret|"
    r"token|key|credential|mnemonic|phrase|auth|cookie|signature|\bsig\b|jwt|"
    r"session[_-]?id|\bpin\b|\bcv[vc]2?\b|parole|contrase|senha|kennwort|mot de passe|clave|\bssn\b|social security)"
    r"[a-z0-9_\-\x{f1}]*(?: (?:key|token|phrase|words|password|code|number|secret))?"
)
_QUOTE_CLASS = re.escape(QUOTES) + "'`"
_ASSIGNED = re.compile(
    rf"(?P<close>[{_QUOTE_CLASS}]?[\])]?)(?:(?::[ ]?|[ ])[A-Za-z_][\w.\[\]?]{{0,40}}+(?=[ ]?:?=[^=]))?[ \t]{{0,20}}+"
    rf"(?P<sep>:=|=>|={{1,3}}|:{{1,2}}|\||,(?=[ ]?[{_QUOTE_CLASS}])|>(?=[^<>\s]{{1,200}}</)"
    r"|(?i:(?:is(?: now| still)?|was|are|lautet|ist|est|es|to|será|es la)(?=[ :]):?))"
    r"(?P<gap>[ \t\n]{0,40}+)"
)
_SCHEME = re.compile(r"(?i)(?:bearer|basic|token|apikey|digest|ssws|bot|negotiate)[ ]{1,4}+(?=\S)")
_VALUE_ENV = re.compile(rf"[^\s{re.escape(QUOTES)}]+")
_VALUE = re.compile(rf"[^\s{_QUOTE_CLASS},;&<>()\[\]{{}}|]+")
_VALUE_QUERY = re.compile(rf"[^\s{_QUOTE_CLASS}&#<>]+")
_LIMIT = 100_000  # of one quoted value: longer ones end with their line


_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9ñ]+")
# What may follow the telling word: `DB_PASSWORD_PROD`, `API_KEY_2`.
_AFTER = frozenset(
    """
    prod production dev development staging stage test live sandbox old new current value plain plaintext
    text raw b64 base64 hash hashed main primary secondary backup default root admin confirm confirmation
    repeat v1 v2 v3 str string
    """.split()  # noqa: SIM905
)
_ALONE = frozenset(
    """
    password passwd passe passwort passwords passphrase passcode passkey pass pwd pw secret token apikey accesskey
    secretkey privatekey credential credentials mnemonic authtoken accesstoken refreshtoken jwt pgpassword
    mysqlpwd keypass storepass sshpass clientsecret authkey sessionid sessionkey signingkey encryptionkey
    masterkey accountkey sharedaccesskey sharedkey sharedaccesssignature idtoken cookie cvv cvc cvc2 cvv2
    authorization kennwort parole contraseña senha ssn auth seedphrase secrets webhooksecret bearertoken
    dbpassword userpassword sig licensekey
    """.split()  # noqa: SIM905
)
_KEYS_OF = frozenset(
    """
    api access private secret signing encryption encrypt master account shared auth session ssh deploy
    service storage admin root wallet client license subscription primary secondary app application consumer
    write read server bot publishable hmac jwt webhook rsa aes host recovery functions
    """.split()  # noqa: SIM905
)
_PHRASES_OF = frozenset(
    """
    seed recovery backup secret mnemonic pass wallet
    """.split()  # noqa: SIM905
)
_NOT_SECRETS = frozenset(
    """
    next page continuation max min num pad eos bos unk sep cls mask stop special csrfless
    """.split()  # noqa: SIM905
)


def is_secret_name(name: str) -> bool:
    """Is what is given to this name a secret? `DB_PASSWORD`, `apiKey`, `refresh_token`; not `max_tokens`, `key_id`."""
    parts = [part.lower() for part in _CAMEL.split(name) if part]
    while len(parts) > 1 and (parts[-1].isdigit() or parts[-1] in _AFTER):
        parts.pop()
    if not parts:
        return False
    last = parts[-1].rstrip("0123456789") or parts[-1]
    before = parts[-2] if len(parts) > 1 else ""
    if last == "token":
        return before not in _NOT_SECRETS
    if last in _ALONE:
        return True
    if last in ("key", "keys"):
        return before in _KEYS_OF
    if last in ("phrase", "words"):
        return before in _PHRASES_OF
    if last in ("signature",):
        return before in ("amz", "goog") or "access" in parts
    if last == "security":
        return False
    if last == "number":
        return before == "security"
    if last == "id":
        return before == "session" and len(parts) == 2
    if last == "pin":
        return before in ("card", "my", "account", "atm", "sim")
    return last.endswith(("password", "passwd", "secret", "apikey", "passphrase", "mnemonic", "privatekey"))


_WORDS_NOT_VALUES = frozenset(
    """
    none null nil true false undefined str string bytes int bool boolean object array any unknown optional
    required nullable number text void yes no required. on off the a an not your my our that this it and or
    to of for is in was invalid expired missing incorrect wrong correct empty set unset needed valid wrong.
    reset generated stored changed hidden removed redacted masked omitted example placeholder secret password
    token key function const let var return await async new if else self here there only never always also
    then must should can will may from with by at as auth basic bearer header input output type default field
    env environment variable file protected encrypted hashed short long strong weak too very strings numbers
    letters authentication authorization manager reset? hmac sha256 plain plaintext passwd pwd pw passphrase
    apikey created required, optional, disabled enabled
    """.split()  # noqa: SIM905
)
_PLACEHOLDER = re.compile(
    r"(?i)\[(?:secret|email|phone|card|iban|ip|ssn)(?:_[0-9]{1,6})?\]|\$[({]?[A-Za-z_]|\{\{|\{[A-Za-z_.]*\}?$|<[^<>]{0,60}>?$|"
    r"%\(|%[A-Z_]+%$|%s$|"
    r"(?:\*|x|\.|•|-|_|#|\?|…){3,}\W*$|your[_ -]|my[_-](?:api|secret|token|pass)|"
    r"(?:os|process|settings|config|self|args|env|secrets|ctx|this|request|req|params|props|opts|options|st|app|"
    r"cfg|conf|"
    r"credentials|user|data|event|body|vault|var|local|module|each|input|kwargs|creds|cls|options)(?:\.|\[|->)|"
    r"(?:get|fetch|load|read|make|create|generate|random|decrypt|encrypt|hash)[_A-Za-z]*\("
)
_CODE_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*+(?:(?:\.|->|::)[A-Za-z_][A-Za-z_0-9]*+)*+")


def find_credentials(text: str) -> Iterator[Span]:
    """Where credentials stand, in the order of trust: issuers' shapes, URLs, headers and commands, assignments."""
    yield from find_issued(text)
    yield from find_url_passwords(text)
    yield from find_command_secrets(text)
    yield from find_assigned(text)


def find_issued(text: str) -> Iterator[Span]:
    """Credentials that their issuer's prefix gives away."""
    yield from _find_shaped(_ISSUED, text)
    for needs, pattern in _ISSUED_WITH:
        if needs in text:
            yield from _find_shaped(pattern, text)


def _find_shaped(pattern: re2._Regexp, text: str) -> Iterator[Span]:
    for match in pattern.finditer(text):
        start, end = match.span(1)
        token = text[start:end]
        if end < len(text) and _NOT_TOKEN.match(text, end):
            continue
        # `sk-learn-from-all-of-these-examples` is a slug, and what stands inside an encoded picture is chance.
        if not any(map(str.isdigit, token)) and (token.islower() or (token.isupper() and not token.isalpha())):
            continue
        if start >= 61 and _BASE64_BEFORE.fullmatch(text, start - 60, start):
            continue
        yield Span(start, end, "secret")


_URL = _compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^\s/:@\"'<>`]*)(:)")
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+|\[IP(?:_[0-9]{1,6})?\]|\$\{?\w+\}?|<[\w -]+>)(?P<port>:[0-9]{1,5})?"
    r"(?=[/?#\s,;)\]]|$|[^\w@:-])"
)
_PORT = re.compile(r"[0-9]{1,5}(?:[/?#]|$)")
_USERINFO = _compile(r"://([A-Za-z0-9_.~+=-]{16,})@")
_AUTHORITY = re.compile(rf"[^\s{re.escape(QUOTES)}<>`\\]+")


def find_url_passwords(text: str) -> Iterator[Span]:
    """`user:password` of a URL, also where the password has `/` or `@` in it; and a lone token before the `@`."""
    if "://" not in text or "@" not in text:
        return
    done = 0
    for match in _URL.finditer(text):
        start, colon = match.start(1), match.end(2)
        rest = _AUTHORITY.match(text, colon, colon + 400)
        if start < done or rest is None or _PORT.match(rest[0]):
            continue
        end = _end_of_password(rest[0])
        if end is not None and end > 0 and not PLACEHOLDER.fullmatch(rest[0][:end]):
            done = colon + end
            if not _PLACEHOLDER.match(rest[0][:end]):
                yield Span(start, done, "secret")
    for match in _USERINFO.finditer(text):
        if any(map(str.isdigit, match[1])):
            yield Span(match.start(1), match.end(1), "secret")


def _end_of_password(rest: str) -> int | None:
    last = None
    at = rest.find("@")
    while at >= 0:
        following = rest.find("@", at + 1)
        host = _HOST.match(rest, at + 1)
        if host is not None:
            last = at
            if following < 0 or "." in host[0] or host["port"] or host[0] == "localhost":
                return at
        at = following
    return last


_COMMANDS = tuple(
    (needs, _compile(pattern))
    for needs, pattern in (
        # Options of commands: `--password hunter2`; with `=` they are assignments.
        (
            "-",
            r"(?:^|[\s\"'`])--?(?i:[a-z0-9-]*(?:password|passwd|passphrase|secret|token|api-?key|private-key|"
            r"access-key|"
            r"mnemonic|credential|auth-key|secret-key))[ \t]+[\"']?([^\s\"'<>$\-{(\[][^\s\"'<>]*)",
        ),
        ("-p", r"\b(?i:mysql(?:dump|admin)?|mariadb|sshpass|"
            r"mongo(?:sh)?)\b[^\n|;]*?\s-p[ ]?[\"']?([^\s\"'$<\-{(\[][^\s\"'<>]*)"),
        ("-p", r"\b(?i:docker|podman|oc|az|"
            r"helm registry)\s+login\b[^\n|;]*?\s-p[ ]+[\"']?([^\s\"'$<\-{(\[][^\s\"'<>]*)"),
        ("-P", r"\b(?i:sqlcmd|bcp|isql)\b[^\n|;]*?\s-P[ ]?[\"']?([^\s\"'$<\-{(\[][^\s\"'<>]*)"),
        ("-a", r"\bredis-cli\b[^\n|;]*?\s-a[ ]+[\"']?([^\s\"'$<{(\[][^\s\"'<>]*)"),
        ("-u", r"\b(?:curl|http|wget)\b[^\n|;]*?\s(?:-u|--user)[ =]?[\"']?[^\s\"':$<]+:([^\s\"'$<{(\[][^\s\"'<>]*)"),
        ("-w", r"\bldap\w+\b[^\n|;]*?\s-w[ ]+[\"']?([^\s\"'$<{(\[][^\s\"'<>]*)"),
        # Headers.
        ("uthorization", r"(?i)authorization[\"']?\s*[:=,]\s*[\"']?(?:[a-z]+ )?\s*([\w.~+/=:|-]{8,})"),
        ("earer ", r"(?i)\bbearer[ ]+([\w.~+/=|-]{16,})"),
        ("ookie", r"(?i)\b(?:set-)?cookie[\"']?\s*[:=,]\s*[\"']?((?:[\w.!%-]+=[^\s;\"',]{4,}(?:; ?)?)+)"),
        # Files and languages that name the password without a sign between.
        ("password ", r"(?i)\blogin\s+\S+\s+password\s+([^\s\"]+)"),
        ("password ", r"(?i)(?:^|\n)\s*password[ \t]+([^\s:=\"]*[0-9!@#$%^&*][^\s:=\"]*)[ \t]*(?:[\n\"]|$)"),
        ("'", r"(?i)\b(?:identified\s+(?:with\s+\w+\s+)?by|password)\s+'([^'\n]+)'"),
        (":", r"(?:^|[\n\"'])[\w.*-]+:(?:[0-9]{2,5}|\*):[\w*-]+:[\w*@.-]+:([^\s:\"]+)(?:[\n\"]|$)"),
        ("ENV ", r"(?:^|\n)\s*(?:ENV|ARG)\s+(?i:\w*(?:password|passwd|secret|token|api_?key|private_key|"
            r"access_key))[ \t]+([^\s=\"]+)"),
        ("setx ", r"(?i)setx\s+\w*(?:password|passwd|secret|token|api_?key|private_key|"
            r"access_key)\s+[\"']?([^\s\"']+)"),
        ("config set ", r"(?i)config set\s+[^\s=]*(?:password|token|secret|apikey|api_key|"
            r"authtoken)\s+[\"']?([^\s\"'=]+)"),
        ("_KEY ", r"(?:^|\n)\s*(?:export |set )?[A-Z_]*(?:API|SECRET|ACCESS|"
            r"PRIVATE)_KEY[ \t]+([A-Za-z0-9_/+=.-]*[0-9][A-Za-z0-9_/+=.-]*)"),
        ("value=", r"(?i)(?:key|name)=[\"'][\w.:-]*(?:password|passwd|secret|token|"
            r"api_?key)[\"']\s+value=[\"']([^\"'\n]+)"),
        # `{"name": "DB_PASSWORD", "value": "..."}`, as Kubernetes has it.
        (
            "value",
            r"(?i)name[\"']?\s*[:=]\s*[\"']?[\w.-]*(?:password|passwd|secret|token|api_?key|private_?key|"
            r"mnemonic)[\"']?"
            r"\s*,?\s+[\"']?value[\"']?\s*[:=]\s*[\"']?([^\s\"',}<>]+)",
        ),
        (
            "0x",
            r"(?i)(?:private|secret|wallet|signer|deployer|owner|\bpk\b|_pk\b|priv_?key)[ _-]?(?:key|pk)?[^\n0]{0,40}?"
            r"\b(0x[0-9a-f]{64})\b",
        ),
        (
            "key",
            r"(?i)(?:private|secret|signing|wallet|api|access|eth|ethereum|solana|bitcoin|"
            r"btc)[ _-]?key\b[^\n]{0,40}?[^\w/+=-]"
            r"((?:[0-9a-f]{64}|[1-9A-HJ-NP-Za-km-z]{86,88}|[A-Za-z0-9+/]{40}|[A-Za-z0-9_-]{32,48}))(?:[^\w/+=-]|$)",
        ),
    )
)  # fmt: skip


def find_command_secrets(text: str) -> Iterator[Span]:
    """Secrets in the options of commands, headers and files that have no sign between name and value."""
    same = "".join('"' if character in QUOTES else character for character in text) if not text.isascii() else text
    for needs, pattern in _COMMANDS:
        if needs not in same:
            continue
        for match in pattern.finditer(same):
            start, end = match.span(1)
            value = same[start:end]
            if _PLACEHOLDER.match(value) or value.lower() in _WORDS_NOT_VALUES:
                continue
            if needs in ("key", "earer ") and not _looks_random(value):
                continue
            yield Span(start, end, "secret")


def _looks_random(value: str) -> bool:
    return any(map(str.isdigit, value)) and any(map(str.isalpha, value))


def find_assigned(text: str) -> Iterator[Span]:
    """Values that are given to a name such as `password`, whatever they look like, in any notation."""
    done = 0
    for match in _NAME.finditer(text):
        start, end = match.span()
        if start < done:
            continue
        name = text[start:end]
        if not is_secret_name(name):
            # `password is` may have been taken for one name with the word that follows it.
            name = name.split(" ")[0]
            end = start + len(name)
            if not is_secret_name(name):
                continue
        span = _assigned_value(text, start, end, name)
        if span is not None:
            done = span.end
            yield span


def _assigned_value(text: str, start: int, end: int, name: str) -> Span | None:
    assigned = _ASSIGNED.match(text, end)
    if assigned is None:
        return None
    sep, gap, at = assigned["sep"], assigned["gap"], assigned.end()
    if sep == "===" or text[at : at + 1] == "":
        return None
    if sep == "," and not text[max(0, start - 2) : start].startswith("("):  # a list, not `set("API_KEY", "...")`
        return None
    kind = "ssn" if name.lower() in ("ssn", "social security number") or name.lower().endswith("_ssn") else "secret"
    quote = text[at]
    if quote in QUOTES or quote in "'`":
        close = text.find(quote, at + 1, at + 1 + _LIMIT)
        if close < 0:
            bare = _VALUE.match(text, at + 1)
            close = at + 1 if bare is None else bare.end()
        scheme = _SCHEME.match(text, at + 1)
        begin = scheme.end() if scheme else at + 1
        value = text[begin:close]
        return None if _is_harmless(value, name, quoted=True) else Span(begin, close, kind)
    if sep == "," or (gap.count("\n") and sep != "="):
        return None
    scheme = _SCHEME.match(text, at)
    at = scheme.end() if scheme else at
    if sep == "=" and not gap and not assigned["close"] and name.isupper():
        pattern = _VALUE_ENV
    elif start and text[start - 1] in "?&":
        pattern = _VALUE_QUERY
    else:
        pattern = _VALUE
    found = pattern.match(text, at)
    if found is None:
        return None
    return _bare_value(text, start, assigned, found, name, kind)


def _bare_value(
    text: str, start: int, assigned: re.Match[str], found: re.Match[str], name: str, kind: str
) -> Span | None:
    """A value without quotation marks: in code it is another name, in prose the next word, in a file the secret."""
    value = found[0].rstrip("".join(QUOTES) + "'`")
    sep = assigned["sep"]
    in_file = _begins_line(text, start)
    is_word = sep.strip(":").isalpha()
    if not (in_file and sep == "=") and not name.isupper():
        value = value.rstrip(".,:;!?)") if not is_word or len(value) < 8 else value.rstrip(".,:;?)")
    end = found.start() + len(value)
    following = text[end : end + 1]
    if not value or _is_harmless(value, name, quoted=False) or (value == "$" and following in ("{", "(")):
        return None
    telling = any(not c.isalpha() and c not in "_.-'" for c in value) or _is_mixed(value)
    if name.lower() == "pass" and (not value[0].isalpha() or not telling or "_" in value or len(value) < 6):
        return None  # `pass: 12 fail: 3`
    if name.lower() == "cookie" and len(value) < 12:
        return None
    if sep == ">":
        return Span(found.start(), end, kind)
    if is_word and not (telling and len(value) >= 5):
        return None
    if assigned["close"] and value.isdigit() and name.lower().endswith("token") and len(value) < 6:
        return None
    if telling and (_is_mixed(value) or not _CODE_NAME.fullmatch(value)):
        return Span(found.start(), end, kind) if following not in ("(", "[") or in_file else None
    if (
        not value.isalpha()
        and telling
        and (following not in ("(", "[", ")", ",", ".") or (sep == ":" and following in (",", ".")))
    ):
        return Span(found.start(), end, kind)
    if len(value) >= 12 and value.isalnum() and len(_RUNS.findall(value)) >= 6:
        return Span(found.start(), end, kind)  # letters and digits by turns, as in no name of a variable
    # A word, which in code is a variable.
    query = start > 0 and text[start - 1] in "?&;:/"
    option = name.startswith("-")
    env = option or (sep == "=" and not assigned["gap"] and (name.isupper() or following in (";", "&")))
    line = in_file and sep in (":", "=") and text[end : end + 40].split("\n")[0].strip()[:1] in ("", *QUOTES)
    return Span(found.start(), end, kind) if query or env or line else None


_RUNS = re.compile(r"[0-9]+|[^0-9]+")


def _is_mixed(value: str) -> bool:
    """Do upper and lower case alternate as in no word and hardly in a name?"""
    if len(value) < 8 or not value.isalpha():
        return False
    changes = sum(a.islower() and b.isupper() for a, b in pairwise(value))
    capitals = sum(a.isupper() and b.isupper() for a, b in pairwise(value))
    return changes >= 2 and (capitals >= 1 or changes > len(value) / 5)


def _begins_line(text: str, start: int) -> bool:
    before = text[max(0, start - 60) : start]
    return before[before.rfind("\n") + 1 :].strip(" \t-").lower() in (
        "",
        "export",
        "set",
        "$env:",
        "env",
        "arg",
        "+",
        "$",
    )


def _is_harmless(value: str, name: str, *, quoted: bool) -> bool:
    bare = value.strip()
    if name.lower() in ("pwd", "oldpwd") and bare[:1] in "/~$":  # the folder where a shell is
        return True
    lower = bare.lower()
    if not bare or _PLACEHOLDER.match(bare):
        return True
    if quoted:
        if (
            bare[0] in ")];,}"
            or (bare[0] in "(" and len(bare) < 3)
            or lower in ("none", "null", "true", "false", "string", "str")
        ):
            return True
        return lower == name.lower() or (len(bare) > 200 and " " in bare and "\n" not in bare)
    if lower in _WORDS_NOT_VALUES or bare.startswith(("http://", "https://")):
        return True
    return bool(_CODE_NAME.fullmatch(bare)) and is_secret_name(bare) and (bare.islower() or "." in bare)
