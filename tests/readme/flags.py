"""Writes docs/flags.md from the settings of the commands: `make flags`."""

from pathlib import Path

from slm.cli import COMMANDS
from slm.config.fields import expected, flags
from slm.config.train import TrainConfig

PAGE = Path(__file__).parents[2] / "docs" / "flags.md"
INTRODUCTION = """# Every flag

`python train.py --help`, or `--help` after any other command, prints the same in the terminal. `python train.py` and
`slm train` are one command, and so are the others. `--max_minutes 10`, `--max_minutes=10` and `--max-minutes 10` are
all understood, and a flag that is `true|false` means true when it stands alone. Where the default is empty, the last
column says what happens without the flag.

This page is made from the code: change the help texts in `slm/config`, and run `make flags`.
"""


def page():
    """The text of docs/flags.md."""
    sections = [INTRODUCTION]
    for command, (config, _) in COMMANDS.items():
        sections.append(f"## {command}\n\n{config.__doc__}\n\n```bash\nslm {command} {config.EXAMPLE}\n```\n")
        inherited = flags(TrainConfig) if command == "find-lr" else {}
        if inherited:
            sections.append("It takes the flags of [train](#train) that change what a step learns, and:\n")
        rows = ["| flag | value | default | meaning |", "|---|---|---|---|"]
        for name, flag in flags(config).items():
            if inherited.get(name) == flag:
                continue
            if name in config.HEADINGS and not inherited:
                rows.append(f"| **{config.HEADINGS[name]}** | | | |")
            default = str(flag.default).lower() if flag.kind is bool else flag.default
            shown = "" if default in (None, "", ()) else f"`{default}`"
            cells = (f"`--{name}`", f"`{expected(flag.kind)}`", shown, flag.help)
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        sections.append("\n".join(rows) + "\n")
    return "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
