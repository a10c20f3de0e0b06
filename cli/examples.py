"""An example for the help of every command, and the exit codes. `tests/cli/test_examples.py` parses each of them."""

from __future__ import annotations

import typer

EXIT_CODES = {
    0: "done",
    1: "an error (one line on stderr says why), or something wrong was found: check, doctor, guard, reconcile, verify",
    2: "wrong usage",
    130: "Ctrl-C, after what still costs money was named",
    141: "the reader of a pipe went away, such as `head`",
}

EXAMPLES = {
    "init": "reasoning init --data ~/reasoning-data --type 'tone=friendly,formal' --retention-days 90 --yes",
    "serve": "reasoning serve --data ~/reasoning-data --provider local",
    "status": "reasoning status --watch",
    "doctor": "reasoning doctor --offline",
    "config": "reasoning config --json",
    "demo": "reasoning demo --data /tmp/demo",
    "log": "reasoning log should_respond --since yesterday -f",
    "show": "reasoning show 9f3a81c2d4e5",
    "mcp": "reasoning mcp --data ~/reasoning-data --label-as claude",
    "import": "reasoning import claude-code ~/.claude/projects",
    "label": "reasoning label should_respond --author eva --limit 100",
    "land": "reasoning land",
    "reland": "reasoning reland --json",
    "compact": "reasoning compact --min-files 10",
    "expire": "reasoning expire --retention-days 90 --dry-run",
    "erase": "reasoning erase person-42 --yes",
    "backup": "reasoning backup /backups --keep 7",
    "verify": "reasoning verify /backups",
    "restore": "reasoning restore /backups --data /srv/reasoning-new",
    "check": "reasoning check --days 7",
    "sql": 'reasoning sql "SELECT decision_type, count(*) FROM decisions GROUP BY 1" --csv',
    "export": "reasoning export should_respond --since 2026-11 --feedback 'helpful >= 0.5'",
    "fine-tune": "reasoning fine-tune 3f9a2b --tier small",
    "deploy": "reasoning deploy should_respond",
    "evaluate": "reasoning evaluate should_respond --limit 500",
    "experiment": "reasoning experiment should_respond --since 7d",
    "promote": "reasoning promote should_respond --mode canary",
    "demote": "reasoning demote should_respond --why 'wrong answers since noon'",
    "rollback": "reasoning rollback should_respond",
    "undeploy": "reasoning undeploy should_respond --why 'budget'",
    "cycle": "reasoning cycle should_respond --plan",
    "stop": "reasoning stop --dry-run",
    "pays": "reasoning pays should_respond",
    "guard": "reasoning guard --idle-minutes 10",
    "reconcile": "reasoning reconcile",
    "flow list": "reasoning flow list",
    "flow run": "reasoning flow run export-dataset -p decision_type=should_respond -p since=7d",
    "types discover": "reasoning types discover requests.jsonl",
    "data stats": "reasoning data stats --csv",
    "data datasets": "reasoning data datasets",
    "models list": "reasoning models list --watch",
    "models register": "reasoning models register home --type should_respond --url http://127.0.0.1:8080 --model qwen",
    "models unregister": "reasoning models unregister home",
    "models status": "reasoning models status should_respond",
    "models card": "reasoning models card should_respond",
    "models history": "reasoning models history should_respond",
    "models jobs": "reasoning models jobs --csv",
    "models cancel": "reasoning models cancel 4be1",
    "costs now": "reasoning costs now --watch",
    "costs report": "reasoning costs report --period day",
    "costs charges": "reasoning costs charges --limit 100 --csv",
    "costs set-budget": "reasoning costs set-budget 25 --period month",
}
"""By the words of the command."""


def add_examples(app: typer.Typer, path: str = "") -> None:
    """Give every command of an app, and of its groups, its example as the last line of its help."""
    for command in app.registered_commands:
        name = command.name or (command.callback.__name__.replace("_", "-") if command.callback else "")
        if example := EXAMPLES.get(f"{path} {name}".strip()):
            command.epilog = f"Example: {example}"
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_examples(group.typer_instance, f"{path} {group.name or ''}".strip() if group.name else path)
