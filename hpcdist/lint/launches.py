"""What a command really starts: the programs behind srun, containers and `bash -c`, and which do the work.

Source: the manual pages and `--help` of each.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, zip_longest

import msgspec

from hpcdist.lint.bash import Command, Word, parse_shell
from hpcdist.lint.directives import SRUN, Given, read_options


def _valued(words: str, count: int = 1) -> dict[str, int]:
    return dict.fromkeys(words.split(), count)


WRAPPERS: Mapping[str, Mapping[str, int]] = {
    "env": _valued("-u -C -S"),
    "time": _valued("-f -o"),
    "nohup": {},
    "exec": _valued("-a"),
    "command": {},
    "nice": _valued("-n"),
    "ionice": _valued("-c -n -p"),
    "stdbuf": _valued("-i -o -e"),
    "timeout": _valued("-s -k --signal --kill-after"),
    "setsid": {},
    "unbuffer": {},
    "catchsegv": {},
    "numactl": _valued("-N -m -C -i --cpunodebind --membind --physcpubind --interleave"),
    "taskset": {},
    "nsys": _valued("-o -t -w --output --trace"),
}
# The first word after their options is theirs too: a duration, a mask, a verb.
WITH_WORD = ("timeout", "taskset", "nsys")
CONTAINERS = ("singularity", "apptainer")
CONTAINER_VALUED = _valued(
    "-B --bind --env --env-file -H --home --pwd --cwd --overlay -W --workdir --mount -S --scratch --app --network"
    " --hostname --dns --security --apply-cgroups --add-caps --drop-caps -o --no-mount"
)
RUNNERS = ("conda", "mamba", "micromamba", "uv", "poetry", "pixi", "pipenv", "pdm")
RUNNER_VALUED = _valued("-n --name -p --prefix --cwd --with --python --project --extra --group -e --environment")
SSH_VALUED = _valued("-i -l -o -p -F -J -L -R -D -E")
MPI = ("mpirun", "mpiexec", "mpiexec.hydra", "orterun", "mpirun_rsh", "prterun")
MPI_VALUED = _valued(
    "-n -np --np -c -N -npernode --npernode --map-by -map-by --bind-to -bind-to --rank-by -x -H --host -host -hosts"
    " -hostfile --hostfile -machinefile --machinefile -f -ppn -perhost -wdir --wdir"
) | _valued("-mca --mca -gmca --gmca -genv -env", 2)
SHELLS = ("bash", "sh", "zsh", "dash")
# Python modules that are launchers, by the launcher's name.
MODULES = {
    "torch.distributed.run": "torchrun",
    "torch.distributed.launch": "torchrun",
    "accelerate.commands.launch": "accelerate",
    "deepspeed.launcher.runner": "deepspeed",
    "deepspeed": "deepspeed",
}
TORCH_LAUNCHERS = ("torchrun", "accelerate", "deepspeed")


DEEPEST = 4
MOST_EXPANSIONS = 100
MOST_CHARACTERS = 50_000
MOST_WORDS = 1_000
MOST_SPENT = 200_000
_WHOLE_ARRAY = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\[@\]\}")
_SHELL_TEXT = re.compile(r"-[a-z]*c")
_PYTHON = re.compile(r"(python[0-9.]*|ipython|pypy3?)")


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A program with its arguments.

    Attributes:
        name: Its name without a folder; `torchrun` also for `python -m torch.distributed.run`.
        words: Its arguments, without those of a program that it starts.
        name_word: The word that names it.
        options: srun's options; empty for others.
    """

    name: str
    words: tuple[Word, ...]
    name_word: Word
    options: tuple[Given, ...] = ()

    @property
    def texts(self) -> list[str]:
        """Its arguments as texts."""
        return [word.text for word in self.words]

    def arguments(self) -> Iterator[tuple[str, str]]:
        """Each argument with a value that it may have: what follows its `=`, else the next argument."""
        texts = self.texts
        for text, following in zip_longest(texts, texts[1:], fillvalue=""):
            name, equals, value = text.partition("=")
            yield name, value if equals else following

    def option(self, *names: str) -> str | None:
        """Value of the last of srun's options by these names; "" without a value, None where it is not given."""
        values = [given.value or "" for given in self.options if given.name in names]
        return values[-1] if values else None


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """A command and what it starts, from the outside in.

    Attributes:
        command: The command.
        programs: srun, a container, torchrun, …; the last one does the work.
        inside: Whether it stands in the text of a `bash -c` or a here-document that another command runs.
    """

    command: Command
    programs: tuple[Program, ...]
    inside: bool = False

    def find(self, *names: str) -> Program | None:
        """The first program by one of these names."""
        return next((program for program in self.programs if program.name in names), None)

    @property
    def last(self) -> Program:
        """The program that does the work."""
        return self.programs[-1]

    @property
    def start(self) -> int:
        """Byte at which the name of that program begins."""
        return self.last.name_word.start


def is_python(name: str) -> bool:
    """Whether a program's name says Python, also `$PYTHON` and `${python_bin}`."""
    plain = name.strip("${}").lower()
    return _PYTHON.fullmatch(plain) is not None or (name.startswith("$") and "python" in plain)


def read_launches(
    commands: Sequence[Command], values: Mapping[str, Word], arrays: Mapping[str, Sequence[Word]]
) -> Iterator[Launch]:
    """Yield what each command starts; commands in the text of a `bash -c` or a here-document too.

    `values` and `arrays` are the variables that are the same throughout the script.
    """
    spent = 0
    for plain in commands:
        command = _spread(plain, arrays) if spent < MOST_SPENT else plain
        # Short scripts can be written that are endless when their values and inner texts are all read.
        full = spent < MOST_SPENT
        found = list(_launches(command, command, (), values if full else {}, 0 if full else DEEPEST))
        spent += sum(len(word.text) for launch in found for program in launch.programs for word in program.words)
        yield from found


def _launches(
    outer: Command, command: Command, before: tuple[Program, ...], values: Mapping[str, Word], depth: int
) -> Iterator[Launch]:
    words = [piece for word in command.words for piece in resolve(word, values)]
    programs = before + tuple(_unwrap(words))
    if not programs:
        return
    yield Launch(command=outer, programs=programs, inside=bool(before))
    text = _inner_text(programs[-1], command) if depth < DEEPEST and len(programs) > len(before) else None
    if text is None:
        return
    at = programs[-1].name_word
    for inner in parse_shell(text.encode(errors="replace")).commands:
        moved = msgspec.structs.replace(inner, words=tuple(_move(word, at) for word in inner.words))
        yield from _launches(outer, moved, programs, values, depth + 1)


def _spread(command: Command, arrays: Mapping[str, Sequence[Word]]) -> Command:
    """The command with the words of the arrays that are known in place of `"${NAME[@]}"`."""
    if not arrays or len(command.words) > MOST_EXPANSIONS:
        return command
    words: list[Word] = []
    for word in command.words:
        found = _WHOLE_ARRAY.fullmatch(word.text)
        listed = arrays.get(found[1]) if found else None
        known = listed is not None and len(listed) <= MOST_EXPANSIONS
        words += [_move(one, word) for one in listed] if listed is not None and known else [word]
    return msgspec.structs.replace(command, words=tuple(words))


def _move(word: Word, at: Word) -> Word:
    """The word of an inner text, at the place in the script of the shell that runs it."""
    return msgspec.structs.replace(word, start=at.start, end=at.end)


def _inner_text(program: Program, command: Command) -> str | None:
    """The text that a shell is given to run: with -c, in a here-document, by ssh or by trap."""
    texts = program.texts
    if program.name == "trap":
        return texts[0] if len(texts) > 1 and not texts[0].startswith("-") else None
    if program.name == "ssh":
        return " ".join(texts[_skip(texts, 0, SSH_VALUED) + 1 :]) or None
    if program.name not in SHELLS:
        return None
    for at, text in enumerate(texts):
        if _SHELL_TEXT.fullmatch(text):
            return texts[at + 1] if at + 1 < len(texts) else None
        if not text.startswith("-"):
            return None
    return command.heredoc


def resolve(word: Word, values: Mapping[str, Word]) -> list[Word]:
    """A word with the variables replaced whose value is known; several words where the shell would split it."""
    return list(islice(_resolve(word, values, 0), MOST_WORDS)) if word.expansions and values else [word]


def _resolve(word: Word, values: Mapping[str, Word], depth: int) -> Iterator[Word]:
    known = [part for part in word.expansions if part.kind == "variable" and _is_text(values.get(part.name))]
    # A value may hold its own name, and values of values grow without end.
    if not known or depth >= DEEPEST or len(known) > MOST_EXPANSIONS or len(word.text) > MOST_CHARACTERS:
        yield word
        return
    text, left = word.text, [part for part in word.expansions if part not in known]
    for part in known:
        value = values[part.name]
        text = text.replace(part.source, value.text, 1)
        left += [msgspec.structs.replace(inner, start=part.start) for inner in value.expansions]
    split = not word.quoted and any(re.search(r"\s", values[part.name].text) for part in known)
    replaced = msgspec.structs.replace(word, text=text, expansions=tuple(left))
    for piece in _split(replaced) if split else [replaced]:
        yield from _resolve(piece, values, depth + 1)


def _is_text(value: Word | None) -> bool:
    """Whether a variable's value is text that may be put in its place: no command's output."""
    return value is not None and all(part.kind not in ("command", "process") for part in value.expansions)


def _split(word: Word) -> Iterator[Word]:
    """The words that an unquoted expansion falls into; a quote in a value is an ordinary character."""
    for text in re.sub(r"\\\n", " ", word.text).split()[:MOST_WORDS]:
        inside = tuple(part for part in word.expansions if part.source in text)
        yield msgspec.structs.replace(word, text=text, expansions=inside)


def _unwrap(words: Sequence[Word]) -> Iterator[Program]:
    """The programs of a command line, from the outside in."""
    for _ in range(2 * DEEPEST):
        while words and re.match(r"[A-Za-z_][A-Za-z0-9_]*=", words[0].text):
            words = words[1:]
        if not words:
            return
        name = words[0].text.rpartition("/")[2]
        program, rest = _part(name, words)
        yield program
        if not rest:
            return
        words = rest


def _part(name: str, words: Sequence[Word]) -> tuple[Program, Sequence[Word]]:
    """A program, and the words of what it starts."""
    head, texts = words[0], [word.text for word in words]
    if name == "srun":
        options = tuple(read_options(texts[1:], SRUN, stop=True))
        own = 1 + (options[-1].last + 1 if options else 0)
        rest = words[own + 1 :] if texts[own : own + 1] == ["--"] else words[own:]
        return Program(name=name, words=tuple(words[1:own]), name_word=head, options=options), rest
    end = _own_end(name, texts)
    if end is None:
        return _worker(name, words), ()
    return Program(name=name, words=tuple(words[1:end]), name_word=head), words[end:]


def _own_end(name: str, texts: Sequence[str]) -> int | None:
    """Where a program's own words end; None for one that starts no other."""
    if name in WRAPPERS:
        return _skip(texts, 1, WRAPPERS[name]) + (name in WITH_WORD)
    if name in MPI:
        return _skip(texts, 1, MPI_VALUED)
    verb = next((at for at, text in enumerate(texts[:6]) if at and text in ("exec", "run", "shell")), None)
    if name in CONTAINERS and verb is not None:
        # The image comes between the options and the program.
        return _skip(texts, verb + 1, CONTAINER_VALUED) + 1
    if name in RUNNERS and texts[1:2] == ["run"]:
        return _skip(texts, 2, RUNNER_VALUED)
    if name in SHELLS:
        at = next((at for at, text in enumerate(texts[:6]) if at and _SHELL_TEXT.fullmatch(text)), len(texts))
        # `bash -c 'cd x; exec "$@"' NAME PROGRAM ...`
        return at + 3 if len(texts) > at + 3 and texts[at + 1].rstrip().endswith('exec "$@"') else None
    if _WHOLE_ARRAY.fullmatch(name) and len(texts) > 1 and not texts[1].startswith("-"):
        return 1  # words that are not known before a program
    if is_python(name) and texts[1:3] == ["-m", "hpcdist.rank"] and "--" in texts and "--torchrun" not in texts:
        return texts.index("--") + 1
    return None


def _worker(name: str, words: Sequence[Word]) -> Program:
    """A program that starts no other that we know of; Python's launchers by their own names."""
    texts = [word.text for word in words[:4]]
    if is_python(name):
        module = 1
        while module < len(texts) and texts[module].startswith("-") and texts[module] not in ("-m", "-c"):
            module += 1
        if texts[module : module + 1] == ["-m"] and module + 1 < len(texts):
            known = MODULES.get(texts[module + 1])
            if texts[module + 1] == "hpcdist.rank" and "--torchrun" in [word.text for word in words]:
                known = "hpcdist-torchrun"
            if known:
                return Program(name=known, words=tuple(words[module + 2 :]), name_word=words[0])
        name = "python"
    return Program(name=name, words=tuple(words[1:]), name_word=words[0])


def _skip(texts: Sequence[str], at: int, valued: Mapping[str, int]) -> int:
    """The place of the first word that is neither an option nor its value."""
    while at < len(texts) and texts[at].startswith("-") and texts[at] != "-":
        if texts[at] == "--":
            return at + 1
        at += 1 + valued.get(texts[at], 0)
    return at


# Python programs that prepare or finish: nobody wants them on every node.
_HELPERS = re.compile(r"prepro|prepare|download|convert|plot|post|summar|collect|merge|report|tokeni|setup\.py|check")
_HELPER_MODULES = ("venv", "pip", "json.tool", "http.server", "compileall", "ensurepip", "hpcdist.stage")
_TRIVIAL = """
hostname nvidia-smi rocm-smi scontrol sinfo squeue echo printf date mkdir cp mv rm rsync tar unzip cat ls env printenv
true false sleep uname lscpu free df du id whoami which module ulimit wget curl git pip pip3 conda touch chmod source .
cd export set test [ sbcast ray unset declare local typeset readonly unsetenv trap kill if exit wait eval return read
huggingface-cli hf wandb ln head tail grep sed awk find pwd sync
"""
_TRIVIAL_NAMES = frozenset(_TRIVIAL.split())


def is_work(launch: Launch) -> bool:
    """Whether a launch is the job's own work: Python or a launcher, no preparation."""
    last = launch.last
    if last.name in (*TORCH_LAUNCHERS, "hpcdist-torchrun"):
        return last.name != "accelerate" or any(word.text == "launch" for word in last.words)
    return last.name == "python" and bool(program_word(last))


def is_step_work(launch: Launch) -> bool:
    """Whether what srun starts is the job's work: anything but a look around, a copy or a preparation."""
    last = launch.last
    if last.name == "python":
        return is_work(launch)
    if last.name in ("$@", "$*") and launch.command.function:
        return False  # the function's callers say what, and with which options
    return not last.name.startswith(("srun", "$(")) and last.name not in _TRIVIAL_NAMES


def program_word(python: Program) -> str:
    """The script or module that Python runs; empty for a helper, `-c`, `--version` and such."""
    words = python.texts
    for at, text in enumerate(words):
        if text == "-m":
            name = words[at + 1] if at + 1 < len(words) else ""
            return "" if name.startswith(_HELPER_MODULES) or _HELPERS.search(name.lower()) else name
        if text in ("-c", "-V", "--version", "-"):
            return ""
        if not text.startswith("-"):
            return "" if _HELPERS.search(text.rpartition("/")[2].lower()) else text
    return ""


def is_python_launch(launch: Launch) -> bool:
    """Whether plain Python does the work, one rank in each process."""
    return is_python(launch.last.name) and is_work(launch)
