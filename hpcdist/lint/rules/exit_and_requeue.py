"""Rules about how a job ends: ranks that die, signals, exit codes and requeues."""

import re
from collections.abc import Iterator

from hpcdist.lint.launches import MPI, Launch, is_step_work, is_work
from hpcdist.lint.rule import LintContext, Match, insert, rule
from hpcdist.lint.script import Script

# They tidy up after the work, so that their status says nothing about it.
_KEEPS = re.compile(r"\$\?|\$\{?PIPESTATUS|\$\{?[a-z_]*(rc|ret|status|exit|code|result|err)[a-z_]*\b", re.IGNORECASE)
_SAFE_TAIL = ("exit", "wait", "test", "[", "fi")


@rule(
    "rank-death",
    "warning",
    why="When one rank dies the others wait for it, and the job holds its nodes until the time limit.",
    fix="srun --kill-on-bad-exit=1.",
    source="torchx#479; srun(1), --kill-on-bad-exit",
)
def rank_death(script: Script, _: LintContext) -> Iterator[Match]:
    """Steps of several tasks that outlive one of them."""
    if script.exports("SLURM_KILL_BAD_EXIT"):
        return
    for launch, srun, request in script.steps:
        if request.task_count > 1 and srun.option("kill-on-bad-exit") in (None, "0"):
            word = srun.name_word
            is_plain = script.is_written(word, "srun") and srun.option("kill-on-bad-exit") is None
            edits = insert(word.end, " --kill-on-bad-exit=1") if is_plain and not launch.inside else ()
            yield Match(word.start, f"srun of {request.task_count} tasks without --kill-on-bad-exit", edits)


@rule(
    "srun-wait",
    "warning",
    why="It ends a rank that works longer than the others after they ended well, for instance while rank 0 evaluates.",
    fix="srun --kill-on-bad-exit=1 in its place.",
    source="srun(1), --wait; [run: exit status 137]",
)
def srun_wait(script: Script, _: LintContext) -> Iterator[Match]:
    """`srun --wait`."""
    for _launch, srun, request in script.steps:
        value = srun.option("wait")
        if value not in (None, "", "0") and request.task_count > 1:
            yield Match(srun.name_word.start, f"srun --wait={value}")


@rule(
    "tee-hides-death",
    "warning",
    why="A pipe's status is its last command's: the job is COMPLETED although the training failed.",
    fix="set -o pipefail, before it; or let srun --output write the file.",
    source="bash(1), Pipelines; prime-rl#2577",
)
def tee_hides_death(script: Script, _: LintContext) -> Iterator[Match]:
    """Work whose output is piped on."""
    if b"PIPESTATUS" in script.data:
        return
    for launch in _work(script):
        command = launch.command
        if not command.piped_into or command.substitution or script.is_set(command.start, "pipefail"):
            continue
        # With -e a pipe that is cut short on purpose (| head) would end the script.
        safe = not script.is_set(command.start, "e") and not command.depth
        at = script.line_start(command.statement)
        own_line = not script.data[at : command.statement].strip()
        edits = insert(at, "set -o pipefail\n") if safe and own_line else ()
        message = f"the status of {command.words[0].text} is lost in the pipe to {command.piped_into[-1]}"
        yield Match(command.start, message, edits)


def _work(script: Script) -> Iterator[Launch]:
    """The commands that do the job's work, each once."""
    seen: set[int] = set()
    stepped = {launch.command.start for launch, _, _ in script.steps}
    for launch in script.launches:
        is_mine = launch.command.start in stepped or is_work(launch)
        is_mine = is_mine or (launch.find(*MPI) is not None and is_step_work(launch))
        if is_mine and launch.programs[0].name != "trap" and launch.command.start not in seen:
            seen.add(launch.command.start)
            yield launch


@rule(
    "exit-code",
    "warning",
    why="The script's status is its last command's: the job is COMPLETED although the training failed.",
    fix="rc=0; srun … || rc=$?; and exit $rc as the last line. Or set -e at the top.",
    source="bash(1), EXIT STATUS; prime-rl#2577",
)
def exit_code(script: Script, _: LintContext) -> Iterator[Match]:
    """Commands after the work that hide its status."""
    works = [launch.command for launch in _work(script) if not launch.command.substitution]
    works = [command for command in works if not command.function and not command.condition]
    if not works or not script.shell.statements:
        return
    last = works[-1]
    tail = script.data[last.end :].decode(errors="replace")
    if last.background:
        if not re.search(r"\bwait\s+(-n|-p|\"?\$|%|[0-9])", tail) and not re.search(r"\bjobs\b", tail):
            yield Match(last.start, "it runs in the background, and a plain wait has the status 0")
        return
    errexit = script.is_set(last.start, "e", "errexit")
    if last.piped_into and not script.is_set(last.start, "pipefail"):
        return
    after = [start for start, _ in script.shell.statements if start > last.end]
    if not after or errexit or last.rescued:
        return
    texts = [command.words[0].text for command in script.shell.commands if command.start > last.end and command.words]
    if _KEEPS.search(tail) or (texts and texts[0] in _SAFE_TAIL and "$?" in tail) or "trap" in texts:
        return
    line = script.line_of(after[-1])
    yield Match(last.start, f"what comes after it, up to line {line}, decides the job's status")


@rule(
    "rc-under-set-e",
    "warning",
    why="Under set -e the script ends at the command that failed: the line that keeps its status is never reached.",
    fix="rc=0; srun … || rc=$?",
    source="bash(1), set -e [run]",
)
def rc_under_set_e(script: Script, _: LintContext) -> Iterator[Match]:
    """`rc=$?` on a line of its own under `set -e`."""
    works = [launch.command for launch in _work(script)]
    for assignment in script.shell.assignments:
        if assignment.text != "$?" or assignment.depth or not script.is_set(assignment.start, "e", "errexit"):
            continue
        before = [command for command in works if command.end < assignment.start]
        plain = before and not before[-1].rescued and not before[-1].background and not before[-1].condition
        between = script.data[before[-1].end : assignment.start] if before else b""
        if plain and b"||" not in between and not re.search(rb"[A-Za-z]", between):
            yield Match(assignment.start, f"{assignment.name}=$? is reached only when all went well")


@rule(
    "signal-target",
    "warning",
    why="With B: the signal reaches the batch shell alone, without it the tasks alone; and a shell that waits for srun "
    "in the foreground looks at it only afterwards.",
    fix="Without B: for a program that handles it; else B:, a trap, srun … & and wait.",
    source="sbatch(1), --signal; bash(1), SIGNALS",
)
def signal_target(script: Script, _: LintContext) -> Iterator[Match]:
    """A signal that the wrong one gets."""
    directive = script.last("signal")
    found = re.match(r"(R?B?R?:)?(?:SIG)?([A-Za-z0-9]+)", directive.value or "") if directive else None
    if directive is None or found is None:
        return
    to_shell, name = "B" in (found[1] or ""), found[2].upper()
    trapped = [launch.last.texts for launch in script.launches if launch.last.name == "trap"]
    traps = [texts for texts in trapped if any(text.upper().removeprefix("SIG") == name for text in texts)]
    handled = any(texts[0] for texts in traps)  # empty, the signal is ignored
    work = [launch.command for launch in _work(script)]
    if to_shell and not traps:
        yield Match(directive.start, f"--signal={directive.value} reaches only the shell, which has no trap for {name}")
    elif to_shell and work and not any(command.background for command in work):
        yield Match(directive.start, f"the trap for {name} runs only when the command in the foreground is over")
    elif not to_shell and handled:
        yield Match(directive.start, f"--signal={directive.value} without B: never reaches the script's own trap")


@rule(
    "requeue-loop",
    "warning",
    why="A job that fails each time goes round for ever, and leaves checkpoints and charges behind.",
    fix='Stop after some: [ "${SLURM_RESTART_COUNT:-0}" -lt 5 ] && scontrol requeue "$SLURM_JOB_ID".',
    source="PL#6204, PL#15022; submitit#1708",
)
def requeue_loop(script: Script, _: LintContext) -> Iterator[Match]:
    """A requeue without a cap, a script that submits itself whatever happened."""
    capped = b"SLURM_RESTART_COUNT" in script.data
    for launch in script.launches:
        texts = launch.last.texts
        if launch.last.name == "scontrol" and "requeue" in texts[:2] and not capped:
            yield Match(launch.start, "scontrol requeue without a look at SLURM_RESTART_COUNT")
        own = any(text in ("$0", "${0}", "${BASH_SOURCE[0]}") for text in texts)
        plain = not launch.command.branch and not launch.command.function and not launch.inside
        if launch.last.name == "sbatch" and own and plain and not capped:
            yield Match(launch.start, "the script submits itself whatever happened")
