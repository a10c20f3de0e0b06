"""Forms: where Together's documentation leaves a choice, or two public sources disagree, the emulator offers each.

A form is set with `--form NAME=VALUE` or `POST /emulator/forms`, and kept with the emulator's state. The first value of
each is the default: what the SDK's own type descriptions and command line say.
"""

from __future__ import annotations

from emulator.errors import ApiError
from emulator.world.context import Emulator
from emulator.world.state import State

FORMS: dict[str, tuple[str, ...]] = {
    # `gpuType` of instance types and profiles: `H100` (the SDK's types), or as in older answers `nvidia-h100`.
    "gpu_type": ("short", "vendor"),
    # A deployment's `hardware`: the instance type's name, a text of the same meaning, or a name that says nothing.
    "hardware": ("name", "label", "opaque"),
    # A PATCH without `updateMask` touches populated fields only: an empty list or a zero is not populated.
    "update_mask": ("required", "optional"),
    # Certified profiles of a model: one, or FP8 and BF16 with each adapter mode at one price, the useless ones first.
    "profiles": ("one", "several"),
    # A profile names its config, or only `certifiedConfigRevisionId`.
    "profile_config": ("pinned", "omitted"),
    # A FAILED deployment stays FAILED when it is scaled to zero, or it becomes STOPPED.
    "failed": ("terminal", "stops"),
    # A PATCH of a FAILED deployment is refused, or accepted.
    "failed_update": ("accepted", "refused"),
    # An update or deletion names the version of the object (`etag`), or need not.
    "etag": ("optional", "required"),
    # A LoRA fine-tune yields a merged model beside its adapter, or the adapter alone (`merge_output_lora`).
    "lora_output": ("merged", "adapter"),
    # A traffic split may be changed, or every change of it is refused.
    "traffic": ("accepted", "refused"),
    # What a deployment of a trained model serves, and says that it serves.
    "served": ("trained", "base"),
    # A config tells how many adapters it carries (a selector), or only the refusal of one too many does.
    "adapter_limit": ("told", "untold"),
    # How many adapters a deployment carries: as many as the service's page on LoRA says, or two.
    "adapter_room": ("documented", "two"),
    # What one adapter too many is answered with: 400 (a precondition), or 429 (something is exhausted).
    "adapter_full": ("precondition", "exhausted"),
    # Does a model think aloud before it answers, unless the request switches it off?
    "thinking": ("never", "by_default"),
}


def form(emulator: Emulator, name: str) -> str:
    """The value of a form."""
    return str(read_forms(emulator.state)[name])


def read_forms(state: State) -> dict[str, str]:
    """Every form and its value."""
    chosen = state.get_setting("forms", {})
    return {name: chosen.get(name, values[0]) for name, values in FORMS.items()}


def set_forms(state: State, changes: dict[str, object]) -> dict[str, str]:
    """Set some forms, leave the others; returns all. Raises ApiError (400) for a name or value that is not known."""
    for name, value in changes.items():
        if name not in FORMS:
            raise ApiError(400, f"form {name!r} is not known; known are {', '.join(FORMS)}", param=name)
        if value not in FORMS[name]:
            raise ApiError(400, f"form {name}: {value!r} is none of {', '.join(FORMS[name])}", param=name)
    with state.transaction():
        state.set_setting("forms", {**state.get_setting("forms", {}), **changes})
    return read_forms(state)


def clear_forms(state: State) -> dict[str, str]:
    """Every form to its default."""
    with state.transaction():
        state.set_setting("forms", {})
    return read_forms(state)
