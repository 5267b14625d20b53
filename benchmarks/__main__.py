"""`python -m benchmarks VERB`: results on stdout as JSON, progress on stderr. Exit codes: 1 no result, 2 the command is wrong."""

from __future__ import annotations

import argparse
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def main(words: list[str] | None = None) -> int:
    from . import data_build, data_scale, held, planner, scaling_page, table
    from .speed import command

    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    command.add_arguments(verbs.add_parser("speed", help="qllava against its peers, step by step"))
    planner.add_arguments(verbs.add_parser("planner", help="measured peak memory beside what the planner foretells"))
    data_scale.add_arguments(verbs.add_parser("data_scale", help="the 665K mix: time to the first batch, and memory"))
    data_build.add_arguments(
        verbs.add_parser("data_build", help="both mixes from raw sets of the full size: rows, time, memory")
    )
    held.add_arguments(verbs.add_parser("held", help="what processes hold under each engine, beside the formula"))
    verbs.add_parser("scaling", help="write docs/scaling.md: LLaVA-1.5 on clusters, from the formulas")
    verbs.add_parser("table", help="write the Markdown of all results anew")
    args = parser.parse_args(words)
    if args.verb == "table":
        print(json.dumps(table.rewrite()))
        return 0
    try:
        if args.verb == "scaling":
            print(json.dumps(scaling_page.write()))
            return 0
        measured = {
            "speed": command,
            "planner": planner,
            "data_scale": data_scale,
            "data_build": data_build,
            "held": held,
        }
        result = measured[args.verb].measure(args, words)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    if args.verb == "speed" and args.save:
        table.save(result, args.save)
        print(table.markdown(result, args.save), file=sys.stderr)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
