"""The command `demo-t2v info`: a model's networks, the device, and the memory of each plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from demo_t2v.checkpoints.memory import peak, plans, read_networks, requested, show
from demo_t2v.checkpoints.resolve import ResolvedModel, resolve
from demo_t2v.cli.options import takes_options
from demo_t2v.cli.terminal import one_line_errors
from demo_t2v.config import InferenceConfig, load
from demo_t2v.core.devices import name_and_memory, resolve_device


@takes_options(
    "model", "num_frames", "window_frames", "height", "width", "device", "dtype", batch_size=1
)
def info(
    *,
    options: Mapping[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List a model's networks and estimate the memory for a video, without loading weights."""
    with one_line_errors():
        config: InferenceConfig = load(InferenceConfig, None, (), options)
        model = resolve(config.model)
        report = _report(model, config)
        if as_json:
            typer.echo(json.dumps(report))
        else:
            _print(report)


def _report(model: ResolvedModel, config: InferenceConfig) -> dict[str, Any]:
    """Sizes in bytes, as JSON values."""
    networks = read_networks(model.folder)
    request = requested(model, config, config.batch_size)
    device, dtype = resolve_device(config.device, config.dtype)
    name, memory = name_and_memory(device)
    peaks = [
        (plan, peak(networks, request, plan, device))
        for plan in plans(config.decode_chunk_size, device)
    ]
    return {
        "model": config.model,
        "dtype": dtype,
        "parts": [
            {
                "name": p.name,
                "class": p.kind,
                "parameters": p.parameters,
                "bytes": p.parameters * request.item,
            }
            for p in networks.values()
        ],
        "device": {"kind": device, "name": name, "bytes": memory},
        "video": {
            "batch_size": request.batch,
            "frames": request.frames,
            "height": request.height,
            "width": request.width,
        },
        "plans": [
            {"plan": str(plan), "peak": need, "fits": need <= memory} for plan, need in peaks
        ],
    }


def _print(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console, video, device = Console(highlight=False), report["video"], report["device"]
    networks = Table("part", "class", title=f"{report['model']}, {report['dtype']}")
    networks.add_column("parameters, M", justify="right")
    networks.add_column("MiB", justify="right")
    for network in report["parts"]:
        millions, size = network["parameters"] / 1e6, network["bytes"] / 2**20
        networks.add_row(network["name"], network["class"], f"{millions:.2f}", f"{size:.1f}")
    console.print(networks)
    console.print(f"{device['name']} with {show(device['bytes'])}", markup=False)
    what = f"{video['batch_size']} x {video['frames']} frames, {video['height']}x{video['width']}"
    table = Table("plan", title=f"estimated peak, {what}")
    table.add_column("peak", justify="right")
    table.add_column("fits")
    for plan in report["plans"]:
        table.add_row(plan["plan"], show(plan["peak"]), "yes" if plan["fits"] else "no")
    console.print(table)
