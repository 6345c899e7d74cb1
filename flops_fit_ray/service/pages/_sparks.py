"""Devices as rows of a page, each with a line of what was read since the service has watched it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flops_fit_ray import formatting as fmt

WIDTH, HEIGHT = 120, 24  # of a line, in its own units


def device_rows(devices: Sequence[Mapping[str, Any]], history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per machine and per GPU, in the order of `devices`: its readings, each with its line."""
    past = {machine["host"]: machine for machine in history}
    rows = []
    for node in devices:
        known = past.get(node["host"], {})
        at = known.get("at", [])
        memory = node["memory_total"]
        rows.append(
            {
                "name": node["host"],
                "what": f"{node['cpu'] or 'CPU'}, {fmt.counted(node['cpus'], 'core')}" if node["cpus"] else node["cpu"],
                "load": (node["cpu_share"], spark(at, known.get("cpu_share", []), 1.0)),
                "memory": (node["memory_used"], memory, spark(at, known.get("memory_used", []), memory)),
                "more": "",
                "work": fmt.counted(node["running"], "experiment"),
                "idle": not node["running"],
            }
        )
        gpus = {gpu["uuid"]: gpu for gpu in known.get("gpus", [])}
        rows += [_gpu(gpu, at, gpus.get(gpu["uuid"], {})) for gpu in node["gpus"]]
    return rows


def _gpu(gpu: Mapping[str, Any], at: Sequence[float], known: Mapping[str, Any]) -> dict[str, Any]:
    number = len(gpu["experiments"])
    heat = [] if gpu["temperature"] is None else [f"{gpu['temperature']:.0f} °C"]
    power = [] if gpu["power"] is None else [f"{gpu['power']:.0f} W"]
    return {
        "name": f"GPU {gpu['index']}",
        "what": gpu["name"],
        "load": (gpu["utilisation"], spark(at, known.get("utilisation", []), 1.0)),
        "memory": (
            gpu["memory_used"],
            gpu["memory_total"],
            spark(at, known.get("memory_used", []), gpu["memory_total"]),
        ),
        "more": ", ".join([*heat, *power]),
        "work": fmt.counted(number, "experiment") if number else "no experiment",
        "idle": not number,
    }


def spark(at: Sequence[float], values: Sequence[float | None], most: float | None) -> list[str]:
    """Return the points of the polylines through the values, 0 to `most`; a line ends where nothing was read."""
    if not most or len(at) < 2 or at[-1] <= at[0]:
        return []
    lines: list[list[str]] = [[]]
    for when, value in zip(at, values, strict=True):
        if value is None:
            lines.append([])
            continue
        x = WIDTH * (when - at[0]) / (at[-1] - at[0])
        y = 1 + (HEIGHT - 2) * (1 - min(1.0, value / most))
        lines[-1].append(f"{x:.1f},{y:.1f}")
    return [" ".join(line) for line in lines if len(line) > 1]
