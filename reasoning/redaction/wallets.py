"""Keys of wallets: seed phrases (BIP-39), extended keys, WIF and Solana's. Check sums tell them from words and ids."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache

import re2
from mnemonic import Mnemonic

from reasoning.redaction.credentials import Span
from reasoning.redaction.escapes import QUOTES

_LENGTHS = (24, 21, 18, 15, 12)
# The lists that are written with Latin letters; those of Chinese characters are found in any text.
_LANGUAGES = ("english", "spanish", "french", "italian", "portuguese", "czech")
_BORDERS = ("", "\n", "\t", *QUOTES, "'", "`", "“", "”", "<", ">", "(", ")", "|", ":")  # no sentence's end
_WORD = re.compile(r"[^\W\d_]+")
SEED_HINT = re2.compile(
    r"(?i)seed|mnemonic|recover|wallet|phrase|backup|secret words|metamask|ledger|bip-?39|12 words|24 words"
)
_SURE = 18
_GAP = 12  # characters between two words of a phrase: `", "`, `\n 12. `
_BASE58 = re.compile(
    r"(?<![0-9A-Za-z+/_=-])(?:[5KLc9][1-9A-HJ-NP-Za-km-z]{50,51}|[xyzuvt]prv[1-9A-HJ-NP-Za-km-z]{107,108})(?![0-9A-Za-z+/_=-])"
)
_ALPHABET = {c: i for i, c in enumerate("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")}
_BYTES = re.compile(r"\[ ?(?:[0-9]{1,3}, ?){63}[0-9]{1,3} ?\]")


@cache
def _languages() -> dict[str, tuple[Mnemonic, ...]]:
    words: dict[str, tuple[Mnemonic, ...]] = {}
    for language in _LANGUAGES:
        mnemonic = Mnemonic(language)
        for word in mnemonic.wordlist:
            words[word] = (*words.get(word, ()), mnemonic)
    return words


def find_wallet_keys(text: str) -> Iterator[Span]:
    """Where private keys of wallets stand. Addresses and hashes of transactions are public, and stay."""
    if len(text) >= 50:
        yield from find_seed_phrases(text)
        for match in _BASE58.finditer(text):
            if _has_checksum(match[0]):
                yield Span(match.start(), match.end(), "secret")
    if "[" in text and len(text) > 128:  # a key pair of Solana's command line: 64 bytes
        for match in _BYTES.finditer(text):
            if all(int(number) < 256 for number in match[0].strip("[] ").split(",")):
                yield Span(match.start() + 1, match.end() - 1, "secret")


def find_seed_phrases(text: str) -> Iterator[Span]:
    """Runs of 12 to 24 words of one list whose last bits are their check sum.

    One run of twelve nouns in sixteen has a right check sum by chance. So the text must name such a thing, or the
    phrase must stand by itself, as a line, a string or a cell; of a longer one, whose check sum has 6 bits or more, one
    end must.
    """
    if sum(map(text.count, " \n,")) < 11:
        return
    lists = _languages()
    # Every run of twelve has one of each twelfth word, so most texts are done with a twelfth of the look-ups.
    quick = _WORD.findall(text)
    if len(quick) < 12 or not any(word.lower() in lists for word in quick[11::12]):
        return
    named = SEED_HINT.search(text) is not None
    run: list[re.Match[str]] = []
    for match in _WORD.finditer(text):
        known = match[0].lower() in lists
        if run and (not known or _is_apart(text[run[-1].end() : match.start()], named)):
            yield from _find_in_run(text, run, lists, named)
            run = []
        if known:
            run.append(match)
    yield from _find_in_run(text, run, lists, named)


def _is_apart(between: str, named: bool) -> bool:
    return len(between) > _GAP if named else between != " "


def _find_in_run(
    text: str, run: list[re.Match[str]], lists: dict[str, tuple[Mnemonic, ...]], named: bool
) -> Iterator[Span]:
    if len(run) < 12:
        return
    opens, closes = _has_borders(text, run)
    words = [match[0].lower() for match in run]
    at = 0
    while at + 12 <= len(words):
        for length in _LENGTHS:
            phrase = words[at : at + length]
            alone = opens and closes and len(words) == length
            at_border = (opens and at == 0) or (closes and at + length == len(words))
            if len(phrase) < length or not (named or alone or (length >= _SURE and at_border)):
                continue
            if any(
                all(mnemonic in lists[word] for word in phrase) and mnemonic.check(" ".join(phrase))
                for mnemonic in lists[phrase[0]]
            ):
                yield Span(run[at].start(), run[at + length - 1].end(), "secret")
                at += length - 1
                break
        at += 1


def _has_borders(text: str, run: list[re.Match[str]]) -> tuple[bool, bool]:
    """Whether the run begins and ends as a line or a string does: `echo PHRASE"` has one border."""
    before = text[max(0, run[0].start() - 3) : run[0].start()].strip(" ")[-1:]
    after = text[run[-1].end() : run[-1].end() + 3].strip(" ")[:1]
    return before in _BORDERS, after in _BORDERS


def _has_checksum(text: str) -> bool:
    number = 0
    for character in text:
        number = number * 58 + _ALPHABET[character]
    data = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return hashlib.sha256(hashlib.sha256(data[:-4]).digest()).digest()[:4] == data[-4:]
