"""The protocols of one gateway, and what is looked up among all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.errors import GatewayConfigError
from gateway.protocols import PROTOCOLS
from gateway.protocols.port import Protocol


@dataclass(frozen=True, slots=True)
class ProtocolTable:
    """Make it with `make_table`.

    `roots` has the protocols of every root, `key_headers` every header that holds a key."""

    protocols: tuple[Protocol, ...]
    by_name: Mapping[str, Protocol]
    roots: Mapping[bytes, tuple[Protocol, ...]]
    aliases: Mapping[bytes, bytes]
    administration: frozenset[bytes]
    key_headers: tuple[bytes, ...]
    secret_hints: tuple[bytes, ...]
    model_paths: tuple[str, ...]
    header_prefixes: tuple[bytes, ...]
    header_names: frozenset[bytes]
    any_key_roots: frozenset[bytes]

    def owners(self, path: bytes) -> tuple[Protocol, ...]:
        """The protocols that have this path: none, its one owner, or all that share it."""
        parts = path.split(b"/", 3)
        if len(parts) < 2:  # `OPTIONS *`
            return ()
        if len(parts) > 2 and (found := self.roots.get(b"/" + parts[1] + b"/" + parts[2])):
            return found
        return self.roots.get(b"/" + parts[1], ())

    def owner(self, path: bytes) -> Protocol | None:
        """The protocol that alone has this path. None for a shared path, and for one that no protocol has."""
        owners = self.owners(path)
        return owners[0] if len(owners) == 1 else None


def make_table(protocols: Iterable[Protocol]) -> ProtocolTable:
    """Index protocols. Raises `GatewayConfigError` where two of them have the same name."""
    protocols = tuple(protocols)
    by_name = {protocol.name: protocol for protocol in protocols}
    if len(by_name) < len(protocols) or "decisions" in by_name:
        raise GatewayConfigError(f"protocol names: {[p.name for p in protocols]}; each needs its own, none `decisions`")
    roots: dict[bytes, tuple[Protocol, ...]] = {}
    for protocol in protocols:
        for root in protocol.roots:
            roots[root] = (*roots.get(root, ()), protocol)
    return ProtocolTable(
        protocols=protocols,
        by_name=by_name,
        roots=roots,
        aliases={alias: path for protocol in protocols for alias, path in protocol.aliases.items()},
        administration=frozenset().union(*(protocol.administration for protocol in protocols)),
        key_headers=tuple(dict.fromkeys([b"authorization", *(name for p in protocols for name in p.key_headers)])),
        secret_hints=tuple({hint for protocol in protocols for hint in protocol.secret_hints}),
        header_prefixes=tuple(prefix for protocol in protocols for prefix in protocol.header_prefixes),
        header_names=frozenset().union(*(protocol.header_names for protocol in protocols)),
        any_key_roots=frozenset().union(*(protocol.any_key_roots for protocol in protocols)),
        model_paths=tuple(dict.fromkeys(path for protocol in protocols for path in protocol.model_paths)),
    )


DEFAULT_TABLE = make_table(PROTOCOLS)
