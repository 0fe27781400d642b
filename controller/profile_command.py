"""``penstock profile``: make engine profiles and print them, or calibrate one by measurements."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from controller import profiles_calibrate, profiles_explain
from controller.arguments import positive
from controller.facts import GPU_FIELDS, read_gpu_facts
from controller.profiles import ProfileRequest, Source, make_profile
from controller.profiles_imports import import_tables
from controller.profiles_variants import FORMS
from controller.render import profile_name, render_engine_profile
from solvers.engine import EngineConfig, EngineProfile
from solvers.engine.curves import decode_step_s, prefill_s
from solvers.engine.roofline import PRECISIONS, GpuFacts
from solvers.errors import InvalidInput, OutOfRange

ACTIONS = ("make", "calibrate", "import")
TABLE_PROMPTS = (1024, 8192)
TABLE_BATCHES = (1, 32, 256)
TABLE_CONTEXT = 4096


KERNELS_ONLY = (
    "silicon: leave out what measured servers of the engine cost beyond the kernels. By default it is added, because a "
    "plan made without it misses its TTFT: models left out of its fit had a median error of 10 %% of TPOT and 20 %% of "
    "TTFT with it, 13 %% and 45 %% (half of what was measured) without"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; lists are separated by commas and combined with one another."""
    parser.epilog = (
        "Example: penstock profile --model meta-llama/Llama-3.1-8B --gpu-class h100-sxm --tensor-parallel 1,2"
    )
    add = parser.add_argument
    add(
        "action",
        nargs="?",
        choices=ACTIONS,
        default="make",
        help="make one (default), or calibrate one by, or import all of, --from FILE",
    )
    add("--model", help="model as ServedModels name it")
    add("--gpu-class", default=[], type=_words, help="GPU classes, as h100-sxm,l40s")
    add("--tensor-parallel", default=[1], type=_degrees, metavar="N[,N]", help="tensor-parallel degrees (default 1)")
    add("--pipeline-parallel", default=1, type=positive, metavar="N", help="pipeline stages (default 1)")
    add("--expert-parallel", default=1, type=positive, metavar="N", help="GPUs that share the experts (default 1)")
    add("--data-parallel", default=1, type=positive, metavar="N", help="attention copies (default 1)")
    add("--engine", default="vllm", help="vllm, sglang or trtllm (default vllm)")
    add("--precision", default="", help="fp8, fp4 or int4; without it what the checkpoint says, bf16 as a rule")
    add("--source", default=Source.AUTO, type=Source, choices=list(Source), help="where the numbers come from (auto)")
    add("--csv", type=Path, metavar="FILE", help="measurements: phase,size,context,seconds")
    add("--model-config", type=Path, metavar="FILE", help="the model's config.json, for a roofline of any model")
    add("--gpu-facts", type=Path, metavar="FILE", help="data sheet of a GPU class that is not known here, as YAML")
    add("--kv-capacity-tokens", type=positive, metavar="N", help="KV room as the engine reports it at start")
    add("--chunk-tokens", type=positive, metavar="N", help="prompt tokens per step of a mixed replica")
    add("--cold-start-seconds", default=120.0, type=float, metavar="S", help="pod start to Ready (default 120)")
    _add_measured(add)
    add("--wide", action="store_true", help="tabulate prefill behind cached prefixes and in batches too (silicon)")
    add("--kernels-only", action="store_true", help=KERNELS_ONLY)
    add("--as-served", action="store_true", help="the opposite of --kernels-only, and the default")
    add("--variants", default="", metavar="V[+V]", help=f"derive a variant: {FORMS}; several joined by +")
    add("--explain", action="store_true", help="say where each number came from, instead of the profiles")
    add("--skip-unfit", action="store_true", help="leave out what does not fit, and say so, instead of failing")
    add("-o", "--output", default="yaml", choices=sorted(OUTPUTS), help="output format (yaml)")


def _add_measured(add: Callable[..., argparse.Action]) -> None:
    """Declare what calibration and import read, and how it was measured."""
    add(
        "--from",
        dest="measured",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="calibrate: CSV or vllm bench JSON; import: Splitwise CSV or Helix folder",
    )
    add("--least-ratio", default=1.0, type=float, metavar="R", help="calibrate: lengths drawn from R to 1 of nominal")
    add(
        "--batched-tokens",
        type=positive,
        metavar="N",
        help="calibrate: tokens of an engine step (8192, sglang 16384)",
    )
    add("--max-sequences", default=1024, type=positive, metavar="N", help="calibrate: requests served at once (1024)")


def run(args: argparse.Namespace) -> int:
    """Print the profiles; exit code 0, or 1 (by ``InvalidInput``) when one cannot be made."""
    if args.action == "import":
        found = [each.profile for path in args.measured or () for each in import_tables(path)]
        sys.stdout.write(OUTPUTS[args.output](_wanted(found, args), args))
        return 0
    if args.kernels_only and args.as_served:
        raise InvalidInput("profile", "--as-served", "is the opposite of --kernels-only", "give one of them")
    if not args.model or not args.gpu_class:
        raise InvalidInput("profile", "model", "the model or the GPU class is missing", "give --model and --gpu-class")
    _check_precision(args)
    if args.action == "calibrate":
        sys.stdout.write(profiles_calibrate.run(_only(list(requests(args))), args))
        return 0
    made = list(_profiles(args))
    if not made:
        raise InvalidInput("profile", "", "none of the asked combinations fits", "ask for more GPUs per replica")
    if args.explain:
        explanations = [profiles_explain.explain(request, profile) for request, profile in made]
        sys.stdout.write(profiles_explain.to_text(explanations, args.output))
        return 0
    sys.stdout.write(OUTPUTS[args.output]([profile for _, profile in made], args))
    return 0


def _wanted(found: Sequence[EngineProfile], args: argparse.Namespace) -> list[EngineProfile]:
    """Imported profiles of the asked model and GPU classes; all when none was asked for."""
    wanted = [
        profile
        for profile in found
        if args.model in (None, profile.key.model) and (not args.gpu_class or profile.key.gpu_class in args.gpu_class)
    ]
    if not wanted:
        raise InvalidInput("profile import", "from", "no table holds what was asked for", "name a file with --from")
    return wanted


def _check_precision(args: argparse.Namespace) -> None:
    """Refuse a word that would be taken for bf16; measurements may go by any name."""
    words = re.split("[-.]", args.precision)
    if args.precision and args.source is not Source.CSV and not any(word in PRECISIONS for word in words):
        known = ", ".join(PRECISIONS)
        raise InvalidInput("profile", "--precision", f"is {args.precision!r}", f"use {known}, or leave it out")


def _only(asked: Sequence[ProfileRequest]) -> ProfileRequest:
    if len(asked) != 1:
        raise InvalidInput("profile calibrate", "", f"{len(asked)} profiles were asked for", "ask for one at a time")
    return asked[0]


def requests(args: argparse.Namespace) -> Iterator[ProfileRequest]:
    """Every asked GPU class with every asked tensor-parallel degree."""
    config = _read_config(args.model_config)
    for gpu_class in args.gpu_class:
        for degree in args.tensor_parallel:
            yield ProfileRequest(
                model=args.model,
                gpu_class=gpu_class,
                config=EngineConfig(
                    tensor_parallel=degree,
                    pipeline_parallel=args.pipeline_parallel,
                    expert_parallel=args.expert_parallel,
                    data_parallel=args.data_parallel,
                    engine=args.engine,
                    variant=args.precision,
                ),
                source=args.source,
                csv_path=args.csv,
                gpu=_read_gpu(args.gpu_facts, gpu_class),
                model_config=config,
                chunk_tokens=args.chunk_tokens,
                kv_capacity_tokens=args.kv_capacity_tokens,
                cold_start_s=args.cold_start_seconds,
                is_wide=args.wide,
                is_as_served=args.action != "calibrate" and not args.kernels_only,  # calibration finds it anew
                variants=args.variants,
            )


def _profiles(args: argparse.Namespace) -> Iterator[tuple[ProfileRequest, EngineProfile]]:
    for request in requests(args):
        try:
            yield request, make_profile(request)
        except InvalidInput as unfit:
            if not args.skip_unfit:
                raise
            print(f"left out {request.gpu_class}/{request.config.label}: {unfit}", file=sys.stderr)


def to_yaml(profiles: Sequence[EngineProfile], args: argparse.Namespace) -> str:
    """One document per profile, under the command that makes the file again."""
    documents = [
        yaml.safe_dump(render_engine_profile(profile), default_flow_style=None, sort_keys=False, width=118)
        for profile in profiles
    ]
    return f"# Made by: {command_line(args)}\n" + "---\n".join(documents)


def command_line(args: argparse.Namespace) -> str:
    """Write the command again from its options, those at their defaults left out."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["penstock", "profile", *([args.action] if getattr(args, "action", "make") != "make" else [])]
    for option in parser._actions:
        value = getattr(args, option.dest, None)
        if value in (None, False, parser.get_default(option.dest)) or option.dest in ("output", "action", "help"):
            continue
        text = (" " if option.nargs == "+" else ",").join(map(str, value)) if isinstance(value, list) else str(value)
        words += [option.option_strings[-1]] if value is True else [option.option_strings[-1], text]
    return shlex.join(words)


def _to_json(profiles: Sequence[EngineProfile], _args: argparse.Namespace) -> str:
    items = [render_engine_profile(profile) for profile in profiles]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1) + "\n"


def _to_table(profiles: Sequence[EngineProfile], _args: argparse.Namespace) -> str:
    """Times in milliseconds; decode at a context of 4,096 tokens."""
    header = ["NAME", "SOURCE", "KV TOKENS"]
    header += [f"PREFILL {tokens}" for tokens in TABLE_PROMPTS] + [f"STEP b{batch}" for batch in TABLE_BATCHES]
    rows = [header, *(_row(profile) for profile in profiles)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def _row(profile: EngineProfile) -> list[str]:
    prefills = [_milliseconds(prefill_s, profile, tokens) for tokens in TABLE_PROMPTS]
    steps = [_milliseconds(decode_step_s, profile, batch, TABLE_CONTEXT) for batch in TABLE_BATCHES]
    return [profile_name(profile), str(profile.source), f"{profile.kv_capacity_tokens}", *prefills, *steps]


def _milliseconds(look_up: Callable[..., float], profile: EngineProfile, *at: float) -> str:
    try:
        return f"{look_up(profile, *at) * 1e3:.1f}"
    except OutOfRange:
        return "-"


OUTPUTS: Mapping[str, Callable[[Sequence[EngineProfile], argparse.Namespace], str]] = {
    "yaml": to_yaml,
    "json": _to_json,
    "table": _to_table,
}


def _read_config(path: Path | None) -> Mapping[str, Any] | None:
    if path is None:
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(str(path), "", f"cannot be read: {error}", "name the model's config.json") from error
    if not isinstance(config, dict):
        raise InvalidInput(str(path), "", "is not a JSON object", "name the model's config.json")
    return config


def _read_gpu(path: Path | None, gpu_class: str) -> GpuFacts | None:
    if path is None:
        return None
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise InvalidInput(str(path), "", f"cannot be read: {said}", "name a YAML file of the GPU's facts") from error
    if not isinstance(given, dict):
        raise InvalidInput(str(path), "", "holds no fields", "write " + ", ".join(GPU_FIELDS))
    return read_gpu_facts(gpu_class, given)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _degrees(text: str) -> list[int]:
    degrees = [int(word) if word.isdecimal() else 0 for word in _words(text)]
    if not degrees or min(degrees) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} holds no degree of at least 1")
    return degrees
