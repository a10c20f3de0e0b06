"""What all endpoints of one gateway share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from gateway.client import GatewayClient
from gateway.coding.classify import Classifier
from gateway.coding.model import CodingModel
from gateway.coding.sessions import Sessions
from gateway.decisions.episodes import Episodes
from gateway.decisions.forced import ForcedTypes
from gateway.decisions.owners import Owners
from gateway.decisions.prompts import PromptKind
from gateway.http.upstream import Pool
from gateway.ops.metrics import Metrics
from gateway.ops.record import Recorder
from gateway.settings import Settings
from reasoning.config import Config
from reasoning.serving.shadow import ShadowTasks


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
    forced: ForcedTypes
    client: GatewayClient
    episodes: Episodes
    owners: Owners
