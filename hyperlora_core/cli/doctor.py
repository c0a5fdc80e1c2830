"""hyperlora doctor: what is installed, found, missing, and the command that mends it."""

from argparse import ArgumentParser, Namespace

from ..doctor import examine

HELP = "show what is installed, found, missing, and the command that mends it"
MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--models-folder", metavar="DIR", help="ComfyUI's models folder (default: found)")


def run(arguments: Namespace) -> int:
    """Run the command; 0 when nothing fails, else 1."""
    findings = examine(arguments.models_folder)
    for finding in findings:
        print(f"{MARKS[finding.level]}  {finding.what}")
        if finding.remedy:
            print(f"      -> {finding.remedy}")
    failing = sum(finding.level == "fail" for finding in findings)
    print(f"{failing} to mend." if failing else "Nothing to mend.")
    return 1 if failing else 0
