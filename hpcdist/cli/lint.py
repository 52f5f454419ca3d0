"""hpcdist lint."""

import difflib
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from hpcdist import __version__
from hpcdist.cli.complete import offer_code, offer_codes
from hpcdist.errors import HpcdistError, UsageError
from hpcdist.text import printable_line

if TYPE_CHECKING:
    from hpcdist.lint.rule import Finding
    from hpcdist.slurm.cluster import Partition

# The finding's colour by its severity.
_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}


@click.command(
    "lint",
    epilog="""Examples:

\b
  hpcdist lint train.sbatch
  hpcdist lint --fix *.sbatch
  hpcdist lint --cluster train.sbatch      (and whether a node here can meet the request)
  hpcdist lint --sarif *.sbatch > lint.sarif
  hpcdist lint --explain port
  # hpcdist: ignore[port]                  (a comment on the line or above it; ignore-file[port] at the top)
""",
)
@click.argument("files", nargs=-1, type=click.Path(), metavar="FILE...")
@click.option("--fix", "mend", is_flag=True, help="Rewrite what is safe to rewrite, and show the difference.")
@click.option("--explain", metavar="CODE", shell_complete=offer_code, help="Explain a rule; all lists them.")
@click.option("--select", metavar="CODE,...", shell_complete=offer_codes, help="Look for these alone.")
@click.option("--ignore", metavar="CODE,...", shell_complete=offer_codes, help="Leave these out.")
@click.option("--brief", is_flag=True, help="One line for each finding.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--sarif", "as_sarif", is_flag=True, help="Print SARIF 2.1.0, for code hosts and editors.")
@click.option("--cluster", is_flag=True, help="Ask this machine's Slurm for its nodes and release.")
@click.option(
    "--site-file",
    type=click.Path(),
    metavar="FILE",
    help="What sinfo -e -h -o '%P|%l|%D|%c|%m|%G' printed, in place of asking.",
)
def lint_command(
    files: tuple[str, ...],
    *,
    mend: bool,
    explain: str | None,
    select: str | None,
    ignore: str | None,
    brief: bool,
    as_json: bool,
    as_sarif: bool,
    cluster: bool,
    site_file: str | None,
) -> None:
    """Find known mistakes in sbatch scripts, anybody's, with or without Slurm here.

    FILE - is standard input. Ends with 1 if there are errors or warnings; notes are only shown.
    """
    # The parser's library is loaded only here.
    from hpcdist.lint.linter import find_rule, lint
    from hpcdist.lint.linter import fix as fix_script
    from hpcdist.lint.rule import LintContext

    if explain:
        click.echo(explain_rule(explain), nl=False)
        return
    if not files:
        raise UsageError("there is no FILE", "hpcdist lint --help")
    chosen, left_out = _codes(select), _codes(ignore)
    for code in (*chosen, *left_out):
        find_rule(code)
    if as_json and as_sarif:
        raise UsageError("--json and --sarif exclude each other", "choose one of them")
    context = LintContext(
        partitions=_partitions(site_file, cluster=cluster),
        folder_exists=lambda folder: Path(folder).is_dir(),
        makes_log_folders=cluster and _makes_log_folders(),
    )
    found: list[tuple[str, Finding]] = []
    for name in files:
        data = _read(name)
        if mend:
            before, data = data, fix_script(data, context, select=chosen, ignore=left_out)
            _show_fix(name, before, data, err=as_json or as_sarif or name == "-")
        found += [(name, one) for one in lint(data, context, select=chosen, ignore=left_out)]
    # Where the mended script itself goes to standard output, nothing else may.
    err = mend and "-" in files
    if as_json or as_sarif:
        click.echo(_format_json(found, as_sarif=as_sarif), err=err)
    else:
        for name, finding in found:
            click.echo(format_finding(name, finding, brief=brief), err=err)
        _sum_up(found, len(files))
    if any(finding.severity != "info" for _, finding in found):
        raise click.exceptions.Exit(1)


def _format_json(found: "list[tuple[str, Finding]]", *, as_sarif: bool) -> str:
    if as_sarif:
        from hpcdist.lint.sarif import build_sarif

        rows: object = build_sarif(found, __version__)
    else:
        rows = [{"file": name, **msgspec.to_builtins(finding)} for name, finding in found]
    return msgspec.json.format(msgspec.json.encode(rows)).decode()


def _codes(text: str | None) -> tuple[str, ...]:
    return tuple(code.strip() for code in text.split(",") if code.strip()) if text else ()


def _read(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such name"
        raise UsageError(
            f"{printable_line(name)} can't be read: {reason}", "name an sbatch script, or - for standard input"
        ) from None


def _partitions(site_file: str | None, *, cluster: bool) -> "tuple[Partition, ...] | None":
    """What the site has, where it is known or asked."""
    from hpcdist.slurm.cluster import SINFO, parse_sinfo

    if site_file:
        return parse_sinfo(_read(site_file).decode(errors="replace"))
    if not cluster:
        return None
    from hpcdist.slurm.commands import run_command

    return parse_sinfo(run_command(SINFO))


def _makes_log_folders() -> bool:
    """Whether this machine's Slurm makes the folder of a log; False where nobody says which release it is."""
    from hpcdist.slurm.releases import find_release, holds

    return holds("log-folders-are-made", find_release())


def _show_fix(name: str, before: bytes, after: bytes, *, err: bool) -> None:
    """Writes the mended script and shows what changed; of standard input, prints the script itself."""
    if name == "-":
        sys.stdout.buffer.write(after)
        sys.stdout.flush()
    elif after != before:
        try:
            Path(name).write_bytes(after)
        except OSError as error:
            raise HpcdistError(f"{printable_line(name)} can't be written: {error.strerror}", "check its mode") from None
    if after != before:
        old, new = (data.decode(errors="replace").splitlines(keepends=True) for data in (before, after))
        for line in difflib.unified_diff(old, new, fromfile=name, tofile=name):
            colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
            text = printable_line(line.rstrip("\r\n"))
            click.echo(click.style(text, fg=colour) if colour else text, err=err)


def format_finding(name: str, finding: "Finding", *, brief: bool = False) -> str:
    """`file:line:column: code message`, then why and what to do."""
    place = click.style(f"{printable_line(name)}:{finding.line}:{finding.column}:", bold=True)
    code = click.style(finding.code, fg=_COLOURS[finding.severity], bold=True)
    mark = " [*]" if finding.edits else ""
    note = " (note)" if finding.severity == "info" else ""
    first = f"{place} {code}{note}{mark} {printable_line(finding.message)}"
    if brief:
        return first
    return f"{first}\n    why: {finding.why}\n    fix: {finding.fix}"


def _sum_up(found: "list[tuple[str, Finding]]", files: int) -> None:
    """The counts, on standard error."""
    counts = Counter(finding.severity for _, finding in found)
    numbers = ((counts["error"], "error(s)"), (counts["warning"], "warning(s)"), (counts["info"], "note(s)"))
    said = ", ".join(f"{count} {word}" for count, word in numbers if count)
    mendable = sum(1 for _, finding in found if finding.edits)
    tail = f"; {mendable} marked [*] can be mended with --fix" if mendable else ""
    click.echo(f"{said or 'nothing'} found in {files} file(s){tail}", err=True)


def explain_rule(code: str) -> str:
    """A rule in full; `all` is a list of them."""
    from hpcdist.lint.linter import RULES, find_rule

    if code == "all":
        width = max(len(rule.code) for rule in RULES)
        return "".join(f"{rule.code:{width}}  {rule.severity:7}  {rule.why}\n" for rule in RULES)
    rule = find_rule(code)
    return (
        f"{rule.code} ({rule.severity})\n\n{rule.why}\n\nfix: {rule.fix}\nsource: {rule.source}\n"
        f"more: docs/pitfalls.md#{rule.code}\n"
    )
