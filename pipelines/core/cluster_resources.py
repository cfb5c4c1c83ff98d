"""Report the resources that a waiting step needs, those that are free, and the actors that hold the rest."""

from collections.abc import Mapping
from typing import Any

import ray
from ray._private import state as ray_state
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]
from ray.util import placement_group_table

_SHOWN = 8


def is_waiting(count: int, bundle: Mapping[str, float]) -> bool:
    """Return whether a placement group of `count` workers, each needing `bundle`, is pending."""
    pending = (group for group in placement_group_table().values() if group["state"] == "PENDING")
    return any([_nonzero(b) for b in group["bundles"].values()] == count * [_nonzero(bundle)] for group in pending)


def describe_waiting(needs: Mapping[str, float]) -> str:
    """Describe in one line the resources that are needed, those that are free, and the actors that hold the rest.

    Args:
        needs: Amounts by Ray's resource names (`CPU`, `GPU`).
    """
    free, total = ray.available_resources(), ray.cluster_resources()

    def format_amounts(amounts: Mapping[str, float]) -> str:
        return ", ".join(f"{amounts.get(name, 0):g} {name}" for name in needs)

    holders = [f"{who} ({format_amounts(held)})" for who, held in list_holders() if any(held.get(n) for n in needs)]
    more = f" and {len(holders) - _SHOWN} more" if len(holders) > _SHOWN else ""
    held = f"held by {', '.join(holders[:_SHOWN])}{more}" if holders else "no Ray actor holds any"
    return f"{format_amounts(needs)} needed, {format_amounts(free)} of {format_amounts(total)} free; {held}"


def list_holders() -> list[tuple[str, dict[str, float]]]:
    """List (name, amounts by resource) of living actors and of reserved placement groups.

    Ray has no public API for this that works without its dashboard.
    """
    reserved = {
        name: _sum(group["bundles"].values())
        for name, group in placement_group_table().items()
        if group["state"] == "CREATED"
    }
    found = [(f"group {name[:8]}", amounts) for name, amounts in reserved.items()]
    accessor: Any = ray_state.state._connect_and_get_accessor()
    for data in accessor.get_actor_table(None, "ALIVE"):
        actor = ActorTableData.FromString(data)
        if actor.required_resources and not actor.placement_group_id.strip(b"\xff"):
            name = actor.repr_name or actor.name or actor.class_name
            found.append((f"{name} (pid {actor.pid}, job {actor.job_id.hex()})", dict(actor.required_resources)))
    return found


def _nonzero(amounts: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in amounts.items() if amount}


def _sum(bundles: Any) -> dict[str, float]:
    total: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0) + amount
    return total
