"""What all doors of one gateway share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from gateway.classify import Classifier
from gateway.client import GatewayClient
from gateway.coding import CodingModel
from gateway.episodes import Episodes
from gateway.metrics import Metrics
from gateway.owners import Owners
from gateway.prompts import PromptKind
from gateway.record import Recorder
from gateway.sessions import Sessions
from gateway.settings import Settings
from gateway.upstream import Pool
from reasoning.config import Config
from reasoning.shadow import ShadowTasks


@dataclass(slots=True)
class State:
    """Made when the gateway starts; nothing in it is a request's.

    `pools` has the upstreams of each protocol, by its name."""

    config: Config
    settings: Settings
    http: aiohttp.ClientSession
    pools: Mapping[str, Pool]
    metrics: Metrics
    recorder: Recorder
    sessions: Sessions
    shadows: ShadowTasks
    classifier: Classifier
    coding: CodingModel
    prompt_kinds: tuple[PromptKind, ...]
    client: GatewayClient
    episodes: Episodes
    owners: Owners
