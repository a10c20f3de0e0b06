"""What `reasoning init` prints to paste: how each client, and each way of running, finds this data folder.

A token is never printed: the lines read it from its file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from shlex import quote

from cli.serve import GATEWAY_PORT, HOST, PROJECT

GATEWAY = f"http://{HOST}:{GATEWAY_PORT}"

_PYTHON = """\
# Or leave `data` out and set REASONING_DATA={data}
from reasoning import DecisionClient

client = DecisionClient({data!r}, agent_id="ada")
context = {{"agent_name": "Ada", "messages": [{{"speaker": "Ann", "text": "Ada?"}}]}}
answer = client.decide_should_respond(context, lambda context: "RESPOND")  # your own rule: the fallback
print(answer.decision)"""
_CLAUDE_KEY = """\
# The gateway has ANTHROPIC_API_KEY; Claude Code sends the gateway's token in its place.
export ANTHROPIC_BASE_URL={gateway}
export ANTHROPIC_AUTH_TOKEN="$(cat {token})\""""
_CLAUDE_LOGIN = """\
# Claude Code keeps its own login (`claude /login`), the token travels beside it: no ANTHROPIC_AUTH_TOKEN, no _API_KEY.
export ANTHROPIC_BASE_URL={gateway}
export ANTHROPIC_CUSTOM_HEADERS="x-reasoning-token: $(cat {token})\""""
_ELIZA = """\
# In the agent's .env, for plugin-openai and plugin-anthropic (whose URL includes /v1).
OPENAI_BASE_URL={gateway}/v1
OPENAI_API_KEY=<what is in {token}>
ANTHROPIC_BASE_URL={gateway}/v1
ANTHROPIC_API_KEY=<what is in {token}>"""
_OPENAI = """\
export OPENAI_BASE_URL={gateway}/v1
export OPENAI_API_KEY="$(cat {token})\""""
_SYSTEMD = """\
# ~/.config/systemd/user/reasoning.service; then: systemctl --user enable --now reasoning
# For a machine of its own, with a sandbox: {project}/deploy/reasoning.service
[Unit]
Description=custom-reasoning
[Service]
WorkingDirectory={folder}
EnvironmentFile={env}
ExecStart={command} serve
Restart=on-failure
KillMode=mixed
TimeoutStopSec=2min
[Install]
WantedBy=default.target"""
_COMPOSE = """\
# compose.yaml; then: docker compose up --build
services:
  reasoning:
    build: {{context: {project}, dockerfile: deploy/Dockerfile}}
    command: ["reasoning", "serve", "--host", "0.0.0.0"]
    user: "{user}"  # whose the data folder is
    init: true
    restart: on-failure
    stop_grace_period: 2m
    env_file: {env}
    environment: {{REASONING_DATA: /data, REASONING_CONFIG: /config/reasoning.toml}}
    volumes: ["{data}:/data", "{settings}:/config/reasoning.toml:ro"]
    ports: ["127.0.0.1:{port}:{port}"]"""


def snippets(data: Path, settings: Path, env_file: Path) -> list[tuple[str, str]]:
    """(title, lines) of everything that can be pointed at this data folder."""
    values = {
        "data": str(data),
        "gateway": GATEWAY,
        "port": GATEWAY_PORT,
        "token": quote(str(data / "gateway.token")),
        "settings": settings,
        "env": env_file,
        "folder": settings.parent,
        "project": PROJECT,
        "user": f"{os.getuid()}:{os.getgid()}",
        "command": Path(sys.executable).with_name("reasoning"),
    }
    texts = {
        "Python": _PYTHON,
        "Claude Code with an API key": _CLAUDE_KEY,
        "Claude Code with a subscription": _CLAUDE_LOGIN,
        "elizaOS": _ELIZA,
        "OpenAI SDKs": _OPENAI,
        "systemd": _SYSTEMD,
        "Compose": _COMPOSE,
    }
    return [(title, text.format(**values)) for title, text in texts.items()]
