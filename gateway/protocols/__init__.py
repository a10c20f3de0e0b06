"""The protocols that the gateway speaks, one object each. To add one, write a module with its `Protocol` and list it
in `PROTOCOLS`; nothing else in the gateway names a company."""

from gateway.protocols.anthropic import ANTHROPIC
from gateway.protocols.gemini import GEMINI
from gateway.protocols.openai import OPENAI
from gateway.protocols.port import Protocol
from gateway.protocols.typesafe import TYPESAFE

PROTOCOLS: tuple[Protocol, ...] = (ANTHROPIC, OPENAI, GEMINI, TYPESAFE)
"""In the order in which they are looked through. The first one's error body is that of requests of no API."""
