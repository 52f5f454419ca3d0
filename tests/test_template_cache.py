"""Compiled templates that are kept between commands."""

from hpcdist.template_cache import TemplateCache
from tests.conftest import run_hpcdist


def render(home, *options):
    done = run_hpcdist("render", *options, env={"HOME": str(home), "XDG_CACHE_HOME": ""})
    assert done.code == 0, done.err
    return done.out


def kept(home):
    return sorted((home / ".cache" / "hpcdist").glob("templates-*/*"))


def test_the_second_script_is_the_first_one_and_comes_from_what_was_kept(project, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    first = render(home, "--nodes", 2)
    files = kept(home)
    assert len(files) >= 2  # the layout's template and its base
    times = [path.stat().st_mtime_ns for path in files]
    assert render(home, "--nodes", 2) == first
    assert [path.stat().st_mtime_ns for path in kept(home)] == times


def test_a_changed_template_is_compiled_anew(project, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (project / "templates").mkdir()
    (project / "hpcdist.toml").write_text('templates = "templates"\n')
    for word in ("one", "two"):
        text = '{% extends "hpcdist/base.sbatch.j2" %}{% block teardown %}echo ' + word + "\n{% endblock %}\n"
        (project / "templates" / "single_gpu.sbatch.j2").write_text(text)
        assert f"echo {word}\n" in render(home)


def test_damaged_or_unwritable_it_is_no_hindrance(project, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    first = render(home)
    for path in kept(home):
        path.write_bytes(path.read_bytes()[:40])
    assert render(home) == first
    (tmp_path / "file").write_text("no folder")
    assert render(tmp_path / "file") == first


def test_without_a_folder_nothing_is_kept():
    assert TemplateCache(None).dump_bytecode(None) is None
