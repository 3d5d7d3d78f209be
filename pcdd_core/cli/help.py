"""Help texts of the commands that need torch or imported modules, made when they are printed."""

import argparse
import json

from ..errors import InputError
from ..pieces import import_pieces
from ..text import printable


def settings_help(*sections: str) -> str:
    """Return the settings with defaults and explanations, of some sections or of all."""
    from ..experiments.config import Config, described_pieces

    lines = [
        "settings with their defaults, which presets can change (values are JSON or plain words):"
    ]
    for place, choices in described_pieces().items():
        if sections and place.split(".")[0] not in sections:
            continue
        for name, (text, settings) in choices.items():
            if name:
                lines.append(f"\n  {place}.name={name}\n      {text}")
            lines += [
                f"  {place}.{setting}={json.dumps(default)}\n      {help_text}"
                for setting, (default, help_text) in settings.items()
            ]
    if not sections:
        seed, text = Config.settings()["seed"]
        lines.append(f"\n  seed={seed}\n      {text}")
    return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    """A parser whose epilog is made when help is printed, because it imports torch."""

    def __init__(self, *arguments, late_epilog=None, **options):
        super().__init__(*arguments, **options)
        self.late_epilog = late_epilog

    def format_help(self) -> str:
        if self.late_epilog:
            self.epilog = self.late_epilog()
        return super().format_help()


class Help(argparse.Action):
    """Print the help of a command, with the pieces of the modules that --import names before it."""

    def __init__(self, option_strings, dest, **options):
        super().__init__(
            option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **options
        )

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            import_pieces(namespace.modules)
        except InputError as error:
            parser.exit(2, f"pcdd: {printable(error)}\n")
        parser.print_help()
        parser.exit()
