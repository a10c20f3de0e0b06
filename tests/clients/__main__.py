"""`make clients`: clients that nobody here wrote, through the gateway, with scripted servers behind it.

Needs npm, and the network for the first run: packages go to `--work` (a folder under the system's temporary one), never
into the tree. `--only NAME` runs the checks whose name begins so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.clients.stage import TOKEN, Stage, claude, claude_start, claude_tool, staged
from tests.gateway import scripted
from tests.gateway.scripted import Seen, chat_answer, chat_chunk, chat_stream, stream, whole

HERE = Path(__file__).parent
NPM = {
    "npm": ["@anthropic-ai/claude-code@2", "@anthropic-ai/sdk@1", "openai"],
    "eliza": [
        *("@elizaos/core@1.7.2", "@elizaos/plugin-anthropic@1.5.12", "@elizaos/plugin-openai@1.6.0"),
        *("@elizaos/plugin-sql@1.7.2", "@elizaos/plugin-bootstrap@1.7.2"),
    ],
}
CALL = {"index": 0, "id": "c", "function": {"name": "Bash", "arguments": '{"command":"echo it-ran","description":"x"}'}}
Check = Callable[[Path, Path], Awaitable[None]]


def install_npm(work: Path, name: str) -> Path:
    """The folder with the packages of `name`."""
    folder = work / name
    installed = folder / ".installed"
    if not installed.exists() or installed.read_text() != " ".join(NPM[name]):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", *NPM[name]], cwd=folder, check=True
        )
        installed.write_text(" ".join(NPM[name]))
    return folder


def install_python(work: Path, name: str, *packages: str) -> Path:
    """The bin folder of an environment with `packages`."""
    folder = work / name
    installed = folder / ".installed"
    if not installed.exists() or installed.read_text() != " ".join(packages):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin/pip"), "install", "-qq", *packages], check=True)
        installed.write_text(" ".join(packages))
    return folder / "bin"


async def run(*command: str, cwd: Path, seconds: float = 180, **env: str) -> tuple[int, str]:
    """Exit status, and stdout followed by stderr. The environment holds nothing but what is given."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), **env},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, error = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        process.kill()
        raise AssertionError(f"{command[0]} did not end within {seconds:.0f} s") from None
    return process.returncode or 0, out.decode() + error.decode()


def expect(condition: Any, what: str) -> None:
    if not condition:
        raise AssertionError(what)


async def claude_code(work: Path, home: Path, at: Stage) -> dict[str, Any]:
    binary = install_npm(work, "npm") / "node_modules/.bin/claude"
    _, out = await run(
        *(str(binary), "-p", "fix the bug in main.py", "--bare", "--output-format", "json", "--allowedTools", "Bash"),
        cwd=home,
        ANTHROPIC_BASE_URL=at.url,
        ANTHROPIC_AUTH_TOKEN=TOKEN,
        DISABLE_AUTOUPDATER="1",
        IS_SANDBOX="1",
    )
    lines = [line for line in out.splitlines() if line.startswith("{")]
    expect(lines, f"Claude Code printed no JSON: {out[:500]}")
    return dict(json.loads(lines[0]))


async def tools_of_anthropic(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """A tool loop by Anthropic."""
    if "/v1/messages" in seen.target and b"tool_result" not in seen.body and b'"Bash"' in seen.body:
        await claude_tool("Bash", {"command": "echo it-ran", "description": "x"})(seen, writer)
    else:
        await claude(seen, writer)


async def tools_of_model(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """The same loop by the coding model."""
    if seen.json["messages"][-1]["role"] == "tool":
        expect("it-ran" in seen.json["messages"][-1]["content"], "the tool did not run")
        await stream(*chat_stream("from ", "the model"))(seen, writer)
    else:
        await stream(chat_chunk(content="I look."), chat_chunk(tool_calls=[CALL]), *chat_stream(finish="tool_calls"))(
            seen, writer
        )


async def check_claude_code_at_anthropic(work: Path, home: Path) -> None:
    async with staged(home / "data") as at:
        at.anthropic.script = tools_of_anthropic
        found = await claude_code(work, home, at)
        expect((found["result"], found["num_turns"]) == ("from anthropic", 2), f"{found['result']!r}")
        asked = [seen for seen in at.anthropic.seen if seen.target == "/v1/messages?beta=true"]
        expect(b"it-ran" in asked[-1].body, "the tool's result did not arrive")


async def check_claude_code_at_the_model(work: Path, home: Path) -> None:
    async with staged(home / "data") as at:
        at.route("coding")
        at.model.script = tools_of_model
        found = await claude_code(work, home, at)
        expect((found["result"], found["num_turns"]) == ("from the model", 2), f"{found['result']!r}")
        # Its request for a title wants JSON of a schema: that is not coding, and Anthropic's.
        asked = [s for s in at.anthropic.seen if s.target == "/v1/messages?beta=true" and s.json.get("tools")]
        expect(not asked, "Anthropic was asked")


FAULTS: dict[str, scripted.Script] = {
    "429": whole(429, b"{}"),
    "500": whole(500, b"{}"),
    "529": whole(529, b"{}"),
    "401": whole(401, b"{}"),
    "400": whole(400, b"{}"),
    "no answer": scripted.cut,
    "empty": stream(*chat_stream()),
    "no end": stream(chat_chunk(role="assistant"), end=False),
    "error event": stream(chat_chunk(content="Half "), b'data: {"error": {"message": "x"}}\n\n', pause=0.3),
    "cut": stream(chat_chunk(content="Half "), chat_chunk(content="an"), end=False, pause=0.3),
}


async def check_claude_code_across_faults_of_the_model(work: Path, home: Path) -> None:
    for name, script in FAULTS.items():
        async with staged(home / f"data-{name.replace(' ', '-')}") as at:
            at.route("coding")
            at.model.script = script
            found = await claude_code(work, home, at)
            expect(found["result"] == "from anthropic", f"after {name}: {found['result']!r}")
            expect(len(at.model.seen) == 1, f"after {name} the model was asked {len(at.model.seen)} times")


async def check_claude_code_across_faults_of_anthropic(work: Path, home: Path) -> None:
    error = b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}'
    half = claude_start()
    failing = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"}}\n\n'
    for name, script in {
        "429": whole(429, error, ("retry-after", "0")),
        "401": whole(401, error),
        "400": whole(400, error),
        "500": whole(500, error),
        "529": whole(529, error),
        "error event": stream(half, failing),
        "cut": stream(half, end=False),
    }.items():
        async with staged(home / f"data-{name.replace(' ', '-')}") as at:
            faults = [1]

            async def once(
                seen: Seen, writer: asyncio.StreamWriter, script: Any = script, faults: Any = faults
            ) -> None:
                chosen = script if faults and "/v1/messages?" in seen.target and faults.pop() else claude
                await chosen(seen, writer)

            at.anthropic.script = once
            found = await claude_code(work, home, at)
            expect(found["result"] == "from anthropic", f"after {name}: {found['result']!r}")


async def check_npm_sdks(work: Path, home: Path) -> None:
    folder = install_npm(work, "npm")
    async with staged(home / "data") as at:
        at.route("coding")

        async def model(seen: Seen, writer: asyncio.StreamWriter) -> None:
            if not seen.json.get("stream"):
                await scripted.json(chat_answer("from the model"))(seen, writer)
            else:
                await tools_of_model(seen, writer)

        at.model.script = model

        async def chat(seen: Seen, writer: asyncio.StreamWriter) -> None:
            answer = (
                stream(*chat_stream("from ", "openai"))
                if seen.json.get("stream")
                else scripted.json(chat_answer("from openai"))
            )
            await answer(seen, writer)

        at.openai.script = chat
        status, out = await run("node", str(HERE / "sdks.mjs"), at.url, TOKEN, cwd=folder)
        expect(status == 0, out[-800:])
        found = json.loads(out.strip().splitlines()[-1])
        expect(found["whole"] == found["streamed"] == "from anthropic", str(found))
        expect(found["tool"]["input"]["command"] == "echo it-ran", str(found))
        expect(found["after"] == "from the model", str(found))
        expect(found["chat"] == found["chatStreamed"] == "from openai", str(found))


async def check_eliza(work: Path, home: Path) -> None:
    folder = install_npm(work, "eliza")
    answers = {
        "RESPOND": "<response><reasoning>asked</reasoning><action>RESPOND</action></response>",
        "REPLY": "<response><thought>t</thought><actions>REPLY, RUN_BUILD</actions>"
        "<providers></providers><text>On it</text></response>",
    }

    async def model(seen: Seen, writer: asyncio.StreamWriter) -> None:
        system = seen.json["messages"][0]["content"]
        await scripted.json(chat_answer(answers["REPLY" if "RUN_BUILD" in system else "RESPOND"]))(seen, writer)

    for plugin in ("anthropic", "openai"):
        async with staged(home / f"data-{plugin}") as at:
            at.route("should_respond", "planning")
            at.model.script = model
            status, out = await run(
                *("node", str(HERE / "eliza.mjs"), plugin),
                cwd=folder,
                **eliza_env(at.url),
            )
            lines = [line for line in out.splitlines() if line.startswith('{"respond"')]
            expect(status == 0 and lines, out[-800:])
            found = json.loads(lines[0])
            expect(found["respond"]["action"] == "RESPOND", str(found))
            expect(found["plan"]["text"] == "On it" and "RUN_BUILD" in str(found["plan"]["actions"]), str(found))
            stats = await at.stats()
            expect(stats["custom"] == 2, f"{plugin}: {stats['by_route']} {stats['fallback_by_reason']}")


def eliza_env(url: str) -> dict[str, Any]:
    """Both plugins of an elizaOS agent pointed at the gateway, whichever it loads."""
    return {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": TOKEN,
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": TOKEN,
        "LOG_LEVEL": "fatal",
    }


async def check_eliza_agent(work: Path, home: Path) -> None:
    """A whole agent of a group: its own prompts, providers, database and message service."""
    folder = install_npm(work, "eliza")
    shutil.copy(HERE / "eliza_agent.mjs", folder)
    plan = "<thought>t</thought><actions>REPLY</actions><providers></providers><text>Here I am</text>"

    async def model(seen: Seen, writer: asyncio.StreamWriter) -> None:
        system, user = (message["content"] for message in seen.json["messages"])
        last = user.partition("\n\n")[0].splitlines()[-1]
        expect(last.startswith("Ann: "), f"the transcript ends with {last!r}")
        action = "RESPOND" if "Ada" in last else "IGNORE"
        answer = plan if "Actions:" in system else f"<reasoning>r</reasoning><action>{action}</action>"
        await scripted.json(chat_answer(f"<response>{answer}</response>"))(seen, writer)

    async def embed(seen: Seen, writer: asyncio.StreamWriter) -> None:
        if "/embeddings" not in seen.target:
            await scripted.json({"object": "list", "data": []})(seen, writer)
            return
        asked = seen.json["input"]
        vectors = [{"object": "embedding", "index": i, "embedding": [0.1] * 1536} for i in range(len(asked))]
        await scripted.json({"object": "list", "model": "e", "data": vectors, "usage": {}})(seen, writer)

    for plugin in ("openai", "anthropic"):
        async with staged(home / f"data-{plugin}") as at:
            at.route("should_respond", "planning")
            at.model.script, at.openai.script = model, embed
            status, out = await run(
                *("node", "eliza_agent.mjs", plugin, "Is the build red?", "Ada, is the build red?"),
                cwd=folder,
                **eliza_env(at.url),
                PGLITE_DATA_DIR="memory://",
                SECRET_SALT="only-for-this-test",
            )
            lines = [line for line in out.splitlines() if line.startswith('[{"responded"')]
            expect(status == 0 and lines, out[-800:])
            silent, spoke = json.loads(lines[0])
            expect(not silent["responded"] and spoke == {"responded": True, "said": ["Here I am"]}, lines[0])
            expect(len(at.model.seen) == 3, f"the model was asked {len(at.model.seen)} times, not 3")
            stats = await at.stats()
            expect(stats["custom"] == 3 and not stats["fallback"], f"{plugin}: {stats['fallback_by_reason']}")


async def check_aider(work: Path, home: Path) -> None:
    bin = install_python(work, "aider", "aider-chat")
    edit = "I add it.\n\nhello.py\n```python\n<<<<<<< SEARCH\n=======\nprint('from the model')\n>>>>>>> REPLACE\n```\n"
    for side in ("model", "anthropic"):
        folder = home / side
        folder.mkdir()
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        async with staged(home / f"data-{side}") as at:
            if side == "model":
                at.route("coding")
                at.model.script = stream(*chat_stream(*re.findall(r"(?s).{1,9}", edit)))
            _, out = await run(
                *(
                    str(bin / "aider"),
                    "--model",
                    "anthropic/claude-sonnet-4-5",
                    "--message",
                    "write hello.py, a script in python",
                ),
                *(
                    "--yes-always",
                    "--no-check-update",
                    "--no-analytics",
                    "--no-gitignore",
                    "--edit-format",
                    "diff",
                    "--no-show-model-warnings",
                ),
                cwd=folder,
                ANTHROPIC_API_BASE=at.url,
                ANTHROPIC_API_KEY=TOKEN,
                LITELLM_LOCAL_MODEL_COST_MAP="True",
            )
            if side == "model":
                expect((folder / "hello.py").exists(), out[-1500:])
                expect("from the model" in (folder / "hello.py").read_text(), "another hello.py")
            else:
                expect("from anthropic" in out, out[-1500:])


SUITE = (
    *("test_messages.py", "messages", "test_models.py", "test_files.py"),
    *("beta/test_messages.py", "beta/messages", "beta/test_models.py", "beta/test_files.py"),
)
SUITE_TOKEN = "my-anthropic-api-key"  # the key that the SDK's tests send
SUITE_NEEDS = (
    "respx",
    "pytest",
    "pytest-asyncio",
    "pytest-xdist",
    "time-machine",
    "dirty-equals",
    "inline-snapshot",
    "http-snapshot[httpx]",
)


async def api_objects(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """A valid object for every route of `SUITE`: the server that the SDK's tests expect is not in its distribution."""
    path, time = seen.target.partition("?")[0], "2026-01-01T00:00:00Z"
    message = {**scripted.ANTHROPIC_MESSAGE, "container": None, "stop_details": None}
    counts = dict.fromkeys(("canceled", "errored", "expired", "processing", "succeeded"), 0)
    batch: dict[str, Any] = {"id": "b", "type": "message_batch", "processing_status": "ended", "request_counts": counts}
    batch |= dict.fromkeys(("archived_at", "cancel_initiated_at", "ended_at", "results_url")) | {
        "created_at": time,
        "expires_at": time,
    }
    model = {"id": "m", "type": "model", "display_name": "M", "created_at": time, "capabilities": None}
    model |= {"max_input_tokens": None, "max_tokens": None, "lifecycle": "active"}
    file = {"id": "f", "type": "file", "filename": "f", "mime_type": "text/plain", "size_bytes": 1, "created_at": time}
    answer: Any = {"data": [], "has_more": False, "first_id": None, "last_id": None}
    if path.endswith("/results"):
        await whole(200, b"", content_type="application/x-jsonl")(seen, writer)
        return
    if path.endswith("/content"):
        await whole(200, b"content", content_type="application/binary")(seen, writer)
        return
    if path.endswith("/count_tokens"):
        answer = {"input_tokens": 3, "context_management": None}
    elif "/batches" in path:
        answer = answer if (seen.method, path) == ("GET", "/v1/messages/batches") else batch
        answer = {"id": "b", "type": "message_batch_deleted"} if seen.method == "DELETE" else answer
    elif path.startswith("/v1/messages"):
        if b'"stream":true' in seen.body.replace(b" ", b""):
            await claude(seen, writer)
            return
        answer = message
    elif path.startswith("/v1/models/"):
        answer = model
    elif path.startswith("/v1/files"):
        answer = answer if (seen.method, path) == ("GET", "/v1/files") else file
        answer = {"id": "f", "type": "file_deleted"} if seen.method == "DELETE" else answer
    await scripted.json(answer)(seen, writer)


async def check_anthropic_suite(work: Path, home: Path) -> None:
    """The SDK's own tests, from its source distribution: the same outcome of every test, and the same requests at the
    server, with the gateway in the middle as without it."""
    import anthropic

    name = f"anthropic-{anthropic.__version__}"
    bin = install_python(work, "suite", f"anthropic[aiohttp]=={anthropic.__version__}", *SUITE_NEEDS)
    if not (work / name).exists():
        pip = [str(bin / "python"), "-m", "pip", "download", "-qq", "--no-deps", "--no-binary", "anthropic"]
        subprocess.run([*pip, "--dest", str(work), f"anthropic=={anthropic.__version__}"], check=True)
        with tarfile.open(work / f"{name}.tar.gz") as archive:
            archive.extractall(work, filter="data")

    async def outcomes(url: str) -> dict[str, str]:
        report = home / "report.xml"
        _, out = await run(
            *(str(bin / "python"), "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", f"--junit-xml={report}"),
            *(f"tests/api_resources/{part}" for part in SUITE),
            cwd=work / name,
            seconds=900,
            TEST_API_BASE_URL=url,
        )
        print("  ", out.strip().splitlines()[-1] if out.strip() else "no output", flush=True)
        expect(report.exists(), f"the suite did not run: {out[-800:]}")
        found = {}
        for case in ElementTree.parse(report).iter("testcase"):
            ends = [child for child in case if child.tag in ("failure", "error", "skipped")]
            why = f"{ends[0].tag}: {(ends[0].get('message') or '').splitlines()[0]}" if ends else "passed"
            found[f"{case.get('classname')}.{case.get('name')}"] = why
        return found

    def requests(at: Stage) -> list[tuple[str, str, bytes]]:
        # The boundary of a multipart form is drawn anew each time.
        return [(s.method, s.target, re.sub(rb"[0-9a-f]{32}", b"", s.body)) for s in at.anthropic.seen]

    async with staged(home / "data", REASONING_GATEWAY_TOKEN=SUITE_TOKEN, ANTHROPIC_API_KEY=SUITE_TOKEN) as at:
        at.anthropic.script = api_objects
        bare, bare_requests = await outcomes(at.anthropic.url), requests(at)
        at.anthropic.seen.clear()
        through, through_requests = await outcomes(at.url), requests(at)
    passed = sum(outcome == "passed" for outcome in through.values())
    print(f"   {passed} of {len(through)} tests pass through the gateway, {len(through_requests)} requests", flush=True)
    for why, count in Counter(outcome for outcome in bare.values() if outcome != "passed").most_common():
        print(f"   without it {count} end so: {why}", flush=True)
    differing = [name for name in bare if bare[name] != through.get(name)]
    expect(not differing, f"{len(differing)} tests end otherwise through the gateway: {differing[:5]}")
    expect(passed > 0.98 * len(through), "the scripted server does not do for these tests")
    missing, more = (
        Counter(bare_requests) - Counter(through_requests),
        Counter(through_requests) - Counter(bare_requests),
    )
    print(f"   {len(bare_requests)} requests without it, {len(through_requests)} through it", flush=True)
    expect(
        not missing, f"{missing.total()} requests did not arrive as they were sent, such as {next(iter(missing), None)}"
    )
    expect(not more, f"{more.total()} requests arrived that nobody sent, such as {next(iter(more), None)}")


async def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "reasoning-clients")
    parser.add_argument("--only", default="", help="run the checks whose name begins so")
    options = parser.parse_args()
    checks: dict[str, Check] = {
        name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")
    }
    if not shutil.which("npm"):
        print("error: npm is needed for these clients", file=sys.stderr)
        return 1
    options.work.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, check in checks.items():
        if not name.startswith(options.only):
            continue
        with tempfile.TemporaryDirectory(prefix="client-") as home:
            try:
                await check(options.work, Path(home))
            except (AssertionError, subprocess.CalledProcessError, json.JSONDecodeError) as error:
                failed += 1
                print(f"FAILED {name}: {error}", flush=True)
            else:
                print(f"passed {name}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
