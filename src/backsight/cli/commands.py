"""All commands, in the order in which the help shows them."""

from __future__ import annotations

from backsight.cli.app import Group, add
from backsight.cli.cost import cost
from backsight.cli.experiments import experiment, reproduce
from backsight.cli.looking import models, stages, verify
from backsight.cli.running import demo, reconstruct, report
from backsight.cli.serving import app as web_page
from backsight.cli.sharing import import_authors, push
from backsight.cli.training import sweep, train
from backsight.cli.zoo import zoo_list

COMMANDS = {
    "demo": demo,
    "train": train,
    "sweep": sweep,
    "reconstruct": reconstruct,
    "experiment": experiment,
    "reproduce": reproduce,
    "report": report,
    "app": web_page,
    "models": models,
    "stages": stages,
    "verify": verify,
    "push": push,
    "cost": cost,
}
GROUPS = {
    "zoo": ("The small trained models that ship with the package.", {"list": zoo_list}),
    "import": ("What others have published, as runs.", {"authors": import_authors}),
}


def build() -> Group:
    """The whole command line."""
    app = Group()
    for name, function in COMMANDS.items():
        add(app, name, function)
    for name, (text, functions) in GROUPS.items():
        group = Group()
        for each, function in functions.items():
            add(group, each, function)
        app.command(group, name=name, help=text)
    return app
