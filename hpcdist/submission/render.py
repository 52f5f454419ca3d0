"""The sbatch script as a value: one pure function from a job to the text that is submitted.

Sources: apptainer-exec(1) (`--bind`, `--nv`, `--pwd`), README of pyxis 0.20 (`--container-image`, `--container-mounts`,
`--container-workdir`). Neither was at hand: the words were tested with a stand-in.
"""

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jinja2
import msgspec
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hpcdist.config.job import JobSpec, Layout
from hpcdist.config.project import CONFIG_NAME
from hpcdist.config.site import Container, Site
from hpcdist.config.training import Training
from hpcdist.errors import UsageError
from hpcdist.slurm import releases
from hpcdist.text import dashed
from hpcdist.units import parse_slurm_time

# Where the script keeps the node-local folder, which only the job itself can know.
_SCRATCH = '"$scratch"'


def find_mounts(job: JobSpec, container: Container, folders: Iterable[str]) -> list[str]:
    """The host's folders to have inside, `/host:/inside`, each once and none inside another of them.

    Raises:
        UsageError: A path holds a character that separates mounts.
    """
    found: list[str] = []
    for folder in [*folders, *([job.training.data_dir] if job.training.data_dir else [])]:
        if set(":,") & set(folder):
            raise UsageError(f"{folder!r} can't be mounted in a container: it holds ':' or ','", "use another folder")
        if not any(f"{folder}/".startswith(f"{other.rstrip('/')}/") for other in found):
            found.append(folder)
    return [one if ":" in one else f"{one}:{one}" for one in (*found, *container.binds)]


def list_lines(job: JobSpec, container: Container, mounts: Iterable[str], workdir: str) -> list[str]:
    """What stands between srun's own options and the program, one line each, as shell words."""
    if container.runtime == "pyxis":
        staged = f",{_SCRATCH}:{_SCRATCH}" if job.stage_data else ""
        return [
            f"--container-image={shlex.quote(container.image)}",
            f"--container-mounts={shlex.quote(','.join(mounts))}{staged}",
            f"--container-workdir={shlex.quote(workdir)}",
            *map(shlex.quote, container.options),
        ]
    has_nv = bool(job.layout.gpus) if container.nv is None else container.nv
    binds = [f"--bind {_SCRATCH}"] if job.stage_data else []
    return [
        shlex.join([container.runtime, "exec", *(["--nv"] if has_nv else [])]),
        *[shlex.join(["--bind", mount]) for mount in mounts],
        *binds,
        shlex.join(["--pwd", workdir, *container.options, container.image]),
    ]


# A prefix under which a user's template finds the packaged ones: {% extends "hpcdist/base.sbatch.j2" %}.
PACKAGED_PREFIX = "hpcdist/"
TEMPLATE_SUFFIX = ".j2"

# Those of the layout, then those of the job.
_LAYOUT_OPTIONS = ("mem", "mem_per_cpu", "time")
_JOB_OPTIONS = (
    *("partition", "account", "qos", "constraint", "nodelist", "exclude", "reservation"),
    *("array", "dependency", "mail_type", "mail_user"),
)


class JobPaths(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job runs and leaves its files; all paths absolute.

    Attributes:
        root: The project's folder, which holds `jobs/runs` and `tb_logs`.
        workdir: Folder the command starts in.
        python: Interpreter with hpcdist installed, as the nodes see it.
        run: Name of the run; None names it after the Slurm job when that starts, so that a script kept
            in a file can be submitted any number of times.
    """

    root: str
    workdir: str
    python: str
    run: str | None = None


def quote_sbatch(value: object) -> str:
    """A value for the right side of `#SBATCH --option=`.

    sbatch is no shell: outside and inside of both kinds of quotes a backslash escapes the next character,
    and an unquoted `#` starts a comment (Slurm 22.05, src/sbatch/opt.c, `_get_argument`).

    Raises:
        UsageError: The value holds a line break or another control character, which no quoting carries.
    """
    text = str(value)
    if any(not c.isprintable() for c in text):
        raise UsageError(f"{text!r} can't stand in an #SBATCH line: it holds a control character", "take it out")
    if re.fullmatch(r"[A-Za-z0-9_./:,@%+=\[\]*&|!^~?-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def quote_shell(value: object) -> str:
    """A value as one word of a POSIX shell.

    Raises:
        UsageError: The value holds a NUL, which no argument can carry.
    """
    text = str(value)
    if "\0" in text:
        raise UsageError(f"{text!r} can't be a shell word: it holds a NUL", "take it out")
    return shlex.quote(text)


def template_name(layout: Layout) -> str:
    """The template that fits a layout."""
    if layout.nodes > 1:
        return "multi_node.sbatch.j2"
    return "multi_gpu.sbatch.j2" if layout.world_size > 1 else "single_gpu.sbatch.j2"


def render(
    job: JobSpec,
    site: Site,
    paths: JobPaths,
    templates: Mapping[str, str],
    *,
    template: str | None = None,
) -> str:
    """Render the script of a job.

    Args:
        job, site, paths: What to run, how this cluster wants it asked for, and where it runs.
        templates: Text of each template by its name; the packaged ones are there under `hpcdist/` too.
        template: Name of the template; None chooses by the layout.

    Raises:
        UsageError: The template is faulty, or a value can't be written safely.
    """
    environment = ImmutableSandboxedEnvironment(
        loader=jinja2.DictLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        optimized=False,  # each template is used once: to fold its constants takes longer than it saves
    )
    environment.filters |= {"sbatch": quote_sbatch, "sh": quote_shell}
    name = template or template_name(job.layout)
    context = {
        "job": job,
        "layout": job.layout,
        "site": site,
        "place": paths,
        "options": list(_options(job, site, paths)),
        "srun_options": list(_srun_options(job, site)),
        "gpu_request": gpu_request(job.layout, site),
        "task": task_command(job, paths),
        "signal_before_s": signal_before_s(job.layout),
        "enter": "".join(f"  {line} \\\n" for line in _enter_container(job, site, paths)),
    }
    try:
        # Compiling a template takes milliseconds: what few jobs have stands in templates of its own.
        part = {
            key: environment.get_template(f"{key}.j2").render(context) if wanted else ""
            for key, wanted in _parts(job, site).items()
        }
        return environment.get_template(name).render(context, part=part)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"template {error.name or name}, line {error.lineno}: {error.message}", _HINT) from None
    except (jinja2.TemplateError, jinja2.exceptions.SecurityError) as error:
        raise UsageError(f"template {name}: {error}", _HINT) from None


_HINT = "compare it with the packaged templates: hpcdist render --help names their folder"


def gpu_request(layout: Layout, site: Site) -> tuple[str, str] | None:
    """Option and value that ask for the layout's GPUs; None for a CPU layout."""
    if not layout.gpus:
        return None
    kind = f"{site.gpu_type}:{layout.gpus}" if site.gpu_type else str(layout.gpus)
    return ("gres", f"gpu:{kind}") if site.gpu_flag == "gres" else ("gpus-per-node", kind)


def _parts(job: JobSpec, site: Site) -> dict[str, bool]:
    """The pieces of a script that not all have, and whether this one does."""
    return {
        "log_folder": _has_log(site),
        "activation": bool(site.modules or site.conda or site.env_folder),
        "tasks": bool(job.tasks or job.task_env),
        "stage": job.stage_data,
        # The built-in training is told where its copy of the data is; a command finds it in its environment.
        "staged": job.stage_data and not job.command,
        "after": job.stage_data or bool(site.teardown),
    }


def _enter_container(job: JobSpec, site: Site, paths: JobPaths) -> list[str]:
    """What stands before the program of each task, where it runs in a container."""
    if site.container is None:
        return []
    mounts = find_mounts(job, site.container, [paths.root, paths.workdir])
    return list_lines(job, site.container, mounts, paths.workdir)


def log_pattern(job: JobSpec, paths: JobPaths) -> str:
    """Where the batch shell writes, for a script that is submitted by hand: beside what its ranks write."""
    run = paths.run or f"{job.slug}-{job.layout.name}-{'%A' if job.array else '%j'}"
    log = "%A_%a_batch.out" if job.array else "%j_batch.out"
    return f"{paths.root.replace('%', '%%')}/jobs/runs/{run}/logs/{log}"


def signal_before_s(layout: Layout) -> int:
    """Seconds before the time limit at which ranks are asked to save: two minutes, less where the limit is short."""
    limit_s = parse_slurm_time(layout.time) if layout.time else None
    return 120 if limit_s is None else min(120, math.ceil(limit_s / 4))


def task_command(job: JobSpec, paths: JobPaths) -> list[list[str]]:
    """What each task runs, as the words of each line: the user's command, or the built-in training's options."""
    if job.command:
        return [list(job.command)]
    train = [paths.python, "-m", "hpcdist.train"]
    # What every task of an array says for itself would only mislead in the common line.
    own = set.intersection(*(set(words) for words in job.tasks)) if job.tasks else set()
    if job.stage_data:
        own = own | {"--data-dir"}  # its place is known on the node alone
    flags = [*_flags(job.layout), *_flags(job.training)]
    return [train, *(words for words in flags if words[0] not in own)]


def _flags(options: Layout | Training) -> Iterator[list[str]]:
    for name in options.__struct_fields__:
        value = getattr(options, name)
        # Memory and time are the scheduler's business, not the training's.
        if value is not None and name not in _LAYOUT_OPTIONS:
            yield flag_words(name, value)


def flag_words(name: str, value: object) -> list[str]:
    """An option of the built-in training as the words of its command line."""
    option = dashed(name)
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [f"--{option}", f"{value:g}" if isinstance(value, float) else str(value)]


def _srun_options(job: JobSpec, site: Site) -> Iterator[tuple[str, str]]:
    """Further options of srun for the ranks, with the value "" for a flag."""
    yield from sorted(job.srun.items())
    if site.auto_resume and "auto-resume" not in job.srun:
        yield "auto-resume", "1"


def _has_log(site: Site) -> bool:
    """Whether the script says where its own log goes."""
    return releases.holds("log-folders-are-made", site.slurm_version)


def _options(job: JobSpec, site: Site, paths: JobPaths) -> Iterator[tuple[str, str]]:
    """The job's further sbatch options, with the value "" for a flag."""
    if site.container and job.goes_on:
        yield "requeue", ""  # by Slurm itself: after preemption, or the loss of a node
    if _has_log(site) and "output" not in job.sbatch:
        yield "output", log_pattern(job, paths)
    for asked, names in ((job.layout, _LAYOUT_OPTIONS), (job, _JOB_OPTIONS)):
        values = ((name, getattr(asked, name)) for name in names)
        yield from ((dashed(name), value) for name, value in values if value is not None)
    if job.exclusive:
        yield "exclusive", ""
    yield from job.sbatch.items()


def packaged_templates() -> Path:
    """The folder of the packaged templates: in the wheel inside the package, in a checkout beside it."""
    package = Path(__file__).parents[1]
    inside = package / "templates"
    return inside if inside.is_dir() else package.parent / "templates"


def read_templates(site: Site, template: Path | None = None) -> tuple[dict[str, str], str | None]:
    """All templates by name, and the name of the one to use (None: by the layout).

    A site's folder overrides packaged templates of the same name; those stay reachable under `hpcdist/`.

    Raises:
        UsageError: A template can't be read.
    """
    packaged = _read_folder(packaged_templates())
    texts = packaged | {PACKAGED_PREFIX + name: text for name, text in packaged.items()}
    if site.templates:
        texts |= _read_folder(Path(site.templates))
    if template is None:
        return texts, None
    texts |= {path.name: _read(path) for path in template.parent.glob(f"*{TEMPLATE_SUFFIX}")}
    name = f"./{template.name}"
    return texts | {name: _read(template)}, name


def _read_folder(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise UsageError(f"there is no folder of templates at {folder}", f"change templates in {CONFIG_NAME}")
    return {path.name: _read(path) for path in folder.glob(f"*{TEMPLATE_SUFFIX}")}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read the template {path}: {error}", "check the path") from None
