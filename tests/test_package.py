"""The release: distributions, notes, and the files that describe the project to others."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes

import pytest
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner
from conftest import ROOT
from twine.commands.check import check

import jet_hf


VERSION = jet_hf.__version__
NOT_RELEASED = (".ci/",)


@pytest.fixture(scope="module")
def files():
    """Files of the checkout that git does not ignore, by their paths."""
    if not (ROOT / ".git").exists():
        pytest.skip("only a checkout tells which files belong to a release")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return {name for name in listed if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def distributions(files, tmp_path_factory):
    """Build a copy of the checkout as a release does: the wheel from the unpacked source distribution."""
    folder = tmp_path_factory.mktemp("release")
    for name in files:
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / "checkout" / name)
    (folder / "blocked").mkdir()
    (folder / "blocked" / "torch.py").write_text("raise ImportError('a build must not need torch')\n")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "checkout"]
    environment = os.environ | {"PYTHONPATH": str(folder / "blocked")}
    built = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert built.returncode == 0, built.stdout
    dist = folder / "dist"
    source, wheel = dist / f"jet_hf-{VERSION}.tar.gz", dist / f"jet_hf-{VERSION}-py3-none-any.whl"
    assert sorted(dist.iterdir()) == [wheel, source]
    return source, wheel


def test_the_source_distribution_holds_the_repository(files, distributions):
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    generated = {name for name in names if name == "PKG-INFO" or ".egg-info/" in name} | {"setup.cfg"}
    assert names - generated == {name for name in files if not name.startswith(NOT_RELEASED)}


def test_the_wheel_holds_the_package_alone(files, distributions):
    with zipfile.ZipFile(distributions[1]) as archive:
        names, metadata = set(archive.namelist()), archive.read(f"jet_hf-{VERSION}.dist-info/METADATA")
    package = {name.removeprefix("src/") for name in files if name.startswith("src/")}
    assert {name for name in names if ".dist-info/" not in name} == package
    assert f"jet_hf-{VERSION}.dist-info/licenses/LICENSE" in names
    assert distributions[1].stat().st_size < 350_000
    fields = message_from_bytes(metadata)
    assert (fields["Version"], fields["License-Expression"]) == (VERSION, "Apache-2.0")
    assert "Programming Language :: Python :: 3.14" in fields.get_all("Classifier")


def test_the_index_accepts_the_distributions(distributions, capsys):
    assert not check([str(path) for path in distributions], strict=True), capsys.readouterr().out


def test_the_installed_wheel_has_the_command(distributions, tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path]
    subprocess.run([*pip, distributions[1]], check=True)
    command = [tmp_path / "bin" / "jet-hf", "--version"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    assert subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout == (
        f"jet-hf {VERSION}\n"
    )


UNRELEASED = "# Changelog\n\n## [Unreleased]\n\n- New.\n\n"
RELEASED = f"{UNRELEASED}## [{VERSION}] - 2026-12-01\n\n### Added\n\n- New.\n\n## [0.0.1] - 2026-01-01\n"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts" / "release_notes.py"))


def test_the_notes_of_a_release_are_its_section(script):
    assert script["release_notes"](f"v{VERSION}", VERSION, RELEASED) == "### Added\n\n- New."


@pytest.mark.parametrize(
    ("tag", "changelog", "message"),
    [
        ("v9.9.9", RELEASED, f"the tag must be v{VERSION}, the version of jet_hf, got v9.9.9"),
        (VERSION, RELEASED, f"the tag must be v{VERSION}"),
        (f"v{VERSION}", UNRELEASED, rf"must have a section `## \[{VERSION}\] - YYYY-MM-DD`"),
        (f"v{VERSION}", RELEASED.replace(" - 2026-12-01", ""), "must have a section"),
        (f"v{VERSION}", RELEASED.replace("### Added\n\n- New.\n\n", ""), "must have a section"),
    ],
)
def test_a_release_without_its_version_or_its_notes_is_refused(script, tag, changelog, message):
    with pytest.raises(ValueError, match=message):
        script["release_notes"](tag, VERSION, changelog)


def test_the_script_of_the_release_ends_with_a_sentence(script):
    with pytest.raises(SystemExit, match=f"error: the tag must be v{VERSION}"):
        script["main"](["v9.9.9"])


def test_the_changelog_keeps_its_form():
    """Keep a Changelog 1.1.0: releases in order, and only its kinds of changes, each once in a release."""
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:])
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        found = re.findall(r"^### (.*)$", section, re.MULTILINE)
        assert len(found) == len(set(found)) and set(found) <= set(kinds)


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("citation-file-format", "CITATION.cff"),
        ("github-workflows", ".github/workflows/*.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
    ],
)
def test_the_files_for_others_are_valid(schema, pattern):
    paths = sorted(map(str, ROOT.glob(pattern)))
    result = CliRunner().invoke(check_jsonschema, ["--builtin-schema", f"vendor.{schema}", *paths])
    assert paths and result.exit_code == 0, result.output
