"""whisperd beside faster-whisper and a peer server: one run, one machine, the same model, clips and normalisation.

    python bench/compare.py                                   everything: an hour or more, see --repeats
    python bench/compare.py --quick                           less of everything: five minutes
    python bench/compare.py --only burst idle --model base
    python bench/compare.py --json run.json --html run.html

Tables go to stdout, progress to stderr. A side that fails is reported with its reason while the others go on, and the
run ends with 1. A target that is missed is shown and is no failure of the run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import plan as plans
import targets
from malformed import malformed
from page import page
from probes import beside, cold_start, idle
from report import MEMORY_NOTE, Results, failure_lines, machine_lines, tables
from run import Run
from sides import HERE, Setup
from speech_set import settings, table
from workloads import burst, closed_loop, long_files, open_loop

from whisperd.models.names import ensure, resolve

WORKLOADS: dict[str, Callable[[Run], None]] = {
    "burst": burst,
    "idle": idle,
    "long": long_files,
    "beside": beside,
    "closed": closed_loop,
    "open": open_loop,
    "cold": cold_start,
    "malformed": malformed,
}
# Scripts of their own whose figures belong to the run: they take --json FILE, and --quick.
SCRIPTS = ("overhead",)


def main() -> int:
    arguments = arguments_from_command_line()
    results = measure(arguments)
    for line in machine_lines(results):
        print(line)
    print()
    for one in tables(results):
        print(one.title)
        table(one.header, one.rows)
        for note in one.notes:
            print(f"  {note}")
        if one.notes:
            print()
    print(MEMORY_NOTE)
    for line in failure_lines(results):
        print(line)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if arguments.html:
        arguments.html.write_text(page(results), encoding="utf-8")
    return 1 if results["failures"] else 0


def measure(arguments: argparse.Namespace) -> Results:
    """Everything that was asked for. Failures are in the results."""
    plan = plans.QUICK if arguments.quick else plans.FULL
    if arguments.repeats:
        plan = dataclasses.replace(plan, repeats=arguments.repeats)
    setup = Setup(arguments.model, Path(ensure(resolve(arguments.model))), arguments.device,
                  "int8" if arguments.device == "cpu" else "float16", settings(arguments))  # fmt: skip
    flavours = plans.flavours(arguments.model, arguments.sketch_tail)
    run = Run(setup, plan, flavours, plans.probe_clips()[0])
    described = machine.describe()
    for name, workload in WORKLOADS.items():
        if name in arguments.only:
            run.say(f"workload {name}")
            try:
                workload(run)
            except Exception as error:  # what was measured before must not be lost with it
                run.failed(name, "the workload", f"{type(error).__name__}: {error}")
    scripts = {name: found for name in SCRIPTS if name in arguments.only and (found := beside_script(run, name, plan))}
    options = {"model": arguments.model, "device": setup.device, "compute_type": setup.compute_type,
               "repeats": plan.repeats, "quick": arguments.quick, "settings": dict(setup.settings),
               "flavours": {name: dataclasses.asdict(flavour) for name, flavour in flavours.items()}}  # fmt: skip
    results: Results = {"machine": described, "options": options, "plan": dataclasses.asdict(plan),
                        "cases": _without_repeated_texts(run.cases), "scripts": scripts,
                        "failures": run.failures}  # fmt: skip
    results["targets"] = targets.rows(results)
    return results


def beside_script(run: Run, name: str, plan: plans.Plan) -> Any:
    """The figures of a script of its own, which prints its tables itself (to stderr here)."""
    file = HERE / f"{name}.py"
    if not file.exists():
        return None
    run.say(f"script {name}")
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, str(file), "--json", str(figures)]
        done = subprocess.run([*command, *(["--quick"] if plan is plans.QUICK else [])], stdout=sys.stderr, check=False)
        if done.returncode or not figures.exists():
            run.failed(name, "the script", f"ended with {done.returncode}")
            return None
        return json.loads(figures.read_text(encoding="utf-8"))


def _without_repeated_texts(cases: dict[str, Any]) -> dict[str, Any]:
    """The texts of each side's first repetition say what there is to say."""
    for case in cases.values():
        for side in case["sides"].values():
            for figures in side["repeats"][1:]:
                figures.pop("texts", None)
                figures.pop("by_clip", None)
    return cases


def arguments_from_command_line() -> argparse.Namespace:
    made = argparse.ArgumentParser(description="whisperd beside faster-whisper and a peer server.")
    made.add_argument("--quick", action="store_true", help="less of everything: five minutes on two cores")
    made.add_argument("--model", default="tiny.en")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--only", nargs="+", action="extend", choices=[*WORKLOADS, *SCRIPTS], metavar="WORKLOAD",
                      help=f"of {', '.join([*WORKLOADS, *SCRIPTS])}")  # fmt: skip
    made.add_argument("--repeats", type=int, help="repetitions of each workload (3; 1 with --quick)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    made.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts here")
    made.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the daemon")
    made.add_argument("--sketch-tail", type=float, metavar="SECONDS", help="of silence, where the daemon's is set")
    arguments = made.parse_args()
    arguments.only = arguments.only or [*WORKLOADS, *SCRIPTS]
    return arguments


if __name__ == "__main__":
    sys.exit(main())
