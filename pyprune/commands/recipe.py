"""`pyprune recipe`: one of the paper's experiments, or the user's own, from end to end on a model."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from pyprune.commands.inputs import chosen_device, quiet_transformers
from pyprune.commands.options import MODEL_HELP, add_device, add_json, add_option, command
from pyprune.commands.output import Bar, console, print_json, print_table
from pyprune.errors import InputError
from pyprune.study.recipes.names import BUDGETS, shipped_recipes

SHOWN = 9
"""Columns that fit onto a screen."""


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "recipe",
        "run one of the paper's experiments, or your own",
        "Run a whole experiment: prune the model in several ways, repair or retrain each result, measure them all, and "
        "write a table, figures and a page. The page shows the paper's numbers beside yours and says where they agree. "
        "Recipes for the paper's tables and figures are included; your own is a TOML file. The steps and their "
        "estimated times are printed first. Finished steps are kept.",
        "pyprune recipe --list",
        "pyprune recipe table5 smollm2-135m --out table5-135m",
        "pyprune recipe table2 smollm2-135m --text wikitext2=wikitext2-test.txt --store finished --out table2-135m",
        "pyprune recipe my.toml smollm2-135m --plan",
    )
    names = ", ".join(shipped_recipes())
    parser.add_argument("name", metavar="NAME", nargs="?", help=f"the recipe: {names}, or a .toml file")
    parser.add_argument("model", metavar="MODEL", nargs="?", help=MODEL_HELP)
    parser.add_argument("--list", action="store_true", help="list the recipes and exit (default: off)")
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print the steps and their estimated times, and exit (default: off)",
    )
    add_option(parser, "--budget", "quick: for a small model, retraining capped; paper: the paper's settings",
               BUDGETS[0], choices=BUDGETS)  # fmt: skip
    parser.add_argument(
        "--text",
        type=named_text,
        action="append",
        default=[],
        metavar="ROLE=TEXT",
        help="replace a text of the budget; TEXT as for score, ROLE is calibration, training, instructions (a file of "
        "instructions) or a held-out text such as wikitext2; may be repeated (default: none)",
    )
    add_option(parser, "--data", "directory of the tasks' data", shown="installed packages, else the hub",
               metavar="DIR")  # fmt: skip
    add_device(parser)
    add_option(parser, "--out", "new or empty directory for results, table, figures and page", metavar="DIR")
    add_option(parser, "--store", "folder that keeps finished work, for other recipes too",
               shown="a folder beside --out, removed at the end", metavar="DIR")  # fmt: skip
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted run from DIR.unfinished beside --out (default: off)",
    )
    add_json(parser)


def named_text(text: str) -> tuple[str, str]:
    role, equals, name = text.partition("=")
    if not (role.strip() and equals and name):
        raise argparse.ArgumentTypeError(f"{text!r}: ROLE=TEXT, such as wikitext2=test.txt, is expected")
    return role.strip(), name


def run(options: argparse.Namespace) -> None:
    """Run one of the paper's experiments, or the user's own, on a model."""
    if options.list:
        return _list(options)
    for name in ("name", "model"):
        if getattr(options, name) is None:
            raise InputError(f"recipe: {name.upper()} is missing; --list shows the recipes")
    from pyprune.study.recipes.run import recipe

    device = chosen_device(options)
    quiet_transformers()

    def announce(plan: Any) -> bool:
        if options.plan and options.json:
            print_json({"recipe": plan.recipe, "model": plan.model, "budget": plan.budget, **plan.to_json()})
        elif not options.json:
            _show(plan)
        return not options.plan

    with Bar() as bar:
        result = recipe(
            options.name,
            options.model,
            options.budget,
            out=options.out,
            store=options.store,
            resume=options.resume,
            texts=dict(options.text),
            data=options.data,
            device=device,
            announce=announce,
            progress=bar,
        )
    if result is None:
        return None
    if options.json:
        return print_json(result.results)
    _report(options, result.results)
    return None


def _list(options: argparse.Namespace) -> None:
    from pyprune.study.recipes.recipe import read_recipe

    recipes = [read_recipe(name) for name in shipped_recipes()]
    if options.json:
        return print_json([{"name": r.name, "title": r.title, "shows": r.shows, "source": r.source} for r in recipes])
    return print_table(["recipe", "what it shows"], [[r.name, r.shows] for r in recipes])


def _show(plan: Any) -> None:
    rows = [[cell.name, f"{cell.seconds:.0f}"] for cell in plan.cells]
    rows.append(["all of it", f"{plan.seconds:.0f}"])
    print_table(["part", "planned seconds"], rows, f"{plan.recipe} on {plan.model}, budget {plan.budget}")
    for note in plan.notes:
        console().print(f"- {note}", markup=False, highlight=False)
    sys.stdout.flush()  # it is read while the work goes on, also from a file


def _report(options: argparse.Namespace, results: dict[str, Any]) -> None:
    from pyprune.study.recipes.agreement import agreement, incomparable
    from pyprune.study.recipes.table import cells

    header, rows = cells(results, paper=False)
    print_table(header[:SHOWN], [row[:SHOWN] for row in rows], results["recipe"]["title"])
    screen = console()
    if len(header) > SHOWN and options.out is not None:
        table = os.path.join(options.out, "table.md")
        screen.print(f"All {len(header)} columns: {table}", markup=False, highlight=False)
    elif len(header) > SHOWN:
        screen.print(f"{len(header) - SHOWN} more columns: --out DIR keeps them in table.md", highlight=False)
    for sentence in [*agreement(results), *incomparable(results)]:
        screen.print(f"- {sentence}", markup=False, highlight=False)
    if options.out is not None:
        screen.print(f"Written: {os.path.join(options.out, 'index.html')}", markup=False, highlight=False)
