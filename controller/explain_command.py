"""``penstock explain``: why a service is placed as it is, from manifests, without a cluster."""

from __future__ import annotations

import argparse

from controller.output import add_output_argument, print_output
from controller.planning import add_folder_arguments, add_trace_argument, plan_folder
from solvers.correction import notes_of
from solvers.errors import InvalidInput
from solvers.explain.pricing import explain_priced


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("service", metavar="NAMESPACE/NAME", help="the ServedModel to explain")
    parser.add_argument(
        "--losses", action="store_true", help="predict what losing the service, a GPU or a kilowatt of it would cost"
    )
    add_folder_arguments(parser)
    add_trace_argument(parser)
    add_output_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Plan the folder and print why the service got what it got."""
    planned = plan_folder(args)
    known = sorted(service.name for service in planned.problem.services)
    if args.service not in known:
        remedy = f"planned are {', '.join(known) or 'none'}"
        raise InvalidInput("service", "", f"names no planned service: {args.service!r}", remedy)
    explanation = explain_priced(planned.plan, planned.problem, args.service, with_losses=args.losses)
    corrected = notes_of(planned.plan, planned.problem, [args.service])
    data = explanation.to_dict() | ({"corrections": list(corrected)} if corrected else {})
    print_output(args.output, data, lambda: "\n".join([explanation.text(), *corrected]))
    return 0
