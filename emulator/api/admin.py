"""The emulator's own routes, under `/emulator`: not Together's, and without authorization."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.billing import bill
from emulator.billing.bill import describe_bill, format_usd, remaining_balance
from emulator.billing.catalog import NANO
from emulator.errors import ApiError
from emulator.world.clock import format_time, parse_time
from emulator.world.context import Emulator, emulator_of, read_json
from emulator.world.forms import clear_forms, read_forms, set_forms


async def check_health(request: Request) -> Response:
    emulator = emulator_of(request)
    return JSONResponse(
        {"status": "ok", "trainer": emulator.settings.trainer, "now": format_time(emulator.clock.timestamp())}
    )


async def read_clock(request: Request) -> Response:
    return JSONResponse(_describe_clock(emulator_of(request)))


async def set_clock(request: Request) -> Response:
    """`{"now": time}` or `{"advance_seconds": n}`, and `"frozen": bool` to stop it or let it run."""
    emulator = emulator_of(request)
    body = await read_json(request)
    if unknown := sorted(set(body) - {"now", "advance_seconds", "frozen"}):
        raise ApiError(400, f"unknown keys: {', '.join(unknown)}; known are now, advance_seconds, frozen")
    now = parse_time(body["now"]) if "now" in body else None
    seconds, frozen = body.get("advance_seconds"), body.get("frozen")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
        raise ApiError(400, f"advance_seconds {seconds!r} is not a number")
    if frozen is not None and not isinstance(frozen, bool):
        raise ApiError(400, f"frozen {frozen!r} is not true or false")
    current = emulator.clock.timestamp()  # read once: a running clock is later at the next look
    target = (now.timestamp() if now else current) + (seconds or 0)
    if target < current and _is_busy(emulator):
        raise ApiError(409, "the clock cannot go back while replicas or jobs run: their bill would be wrong")
    emulator.clock.set(now, advance=timedelta(seconds=seconds) if seconds else None, frozen=frozen)
    return JSONResponse(_describe_clock(emulator))


async def list_faults(request: Request) -> Response:
    return JSONResponse({"faults": emulator_of(request).faults.list()})


async def order_faults(request: Request) -> Response:
    """A list of fault orders, or one; all are added, or none."""
    emulator = emulator_of(request)
    try:
        body: Any = json.loads(await request.body())
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    with emulator.state.transaction():
        for order in body if isinstance(body, list) else [body]:
            emulator.faults.order(order)
    return JSONResponse({"faults": emulator.faults.list()})


async def clear_faults(request: Request) -> Response:
    emulator = emulator_of(request)
    emulator.faults.clear()
    return JSONResponse({"faults": []})


async def list_forms(request: Request) -> Response:
    return JSONResponse(read_forms(emulator_of(request).state))


async def choose_forms(request: Request) -> Response:
    """`{"gpu_type": "vendor", ...}`; the answer has all of them."""
    return JSONResponse(set_forms(emulator_of(request).state, await read_json(request)))


async def reset_forms(request: Request) -> Response:
    return JSONResponse(clear_forms(emulator_of(request).state))


async def read_bill(request: Request) -> Response:
    return JSONResponse(describe_bill(emulator_of(request)))


async def set_bill_form(request: Request) -> Response:
    """`{"attributes": "absent"}` or `{"api": false}`: what the billing API names, and whether it is there."""
    return JSONResponse(bill.set_bill_form(emulator_of(request), await read_json(request)))


async def set_balance(request: Request) -> Response:
    """`{"usd": "25.00"}`: what may still be spent from now on; null: no limit."""
    emulator = emulator_of(request)
    usd = (await read_json(request)).get("usd")
    amount = None
    if usd is not None:
        try:
            amount = int(Decimal(str(usd)) * NANO)
        except (InvalidOperation, OverflowError, ValueError):
            raise ApiError(400, f"usd {usd!r} is not an amount") from None
    with emulator.state.transaction():
        emulator.state.set_setting("balance", None)
        if amount is not None:
            spent = sum(Decimal(item["amount_usd"]) for item in describe_bill(emulator)["items"])
            emulator.state.set_setting("balance", amount + int(spent * NANO))
    remaining = remaining_balance(emulator)
    return JSONResponse({"usd": None if remaining is None else format_usd(remaining)})


def _is_busy(emulator: Emulator) -> bool:
    running = (
        "SELECT 1 FROM fine_tunes WHERE status IN ('pending', 'queued', 'running', 'uploading', 'cancel_requested')"
    )
    live = "SELECT 1 FROM replicas WHERE stopped_at IS NULL OR stopped_at > ?"
    return bool(emulator.state.row(running) or emulator.state.row(live, emulator.clock.timestamp()))


def _describe_clock(emulator: Emulator) -> dict[str, Any]:
    return {"now": format_time(emulator.clock.timestamp()), "frozen": emulator.clock.frozen}
