"""What holds for the pack without a running ComfyUI."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = [REPOSITORY / "__init__.py", *sorted((REPOSITORY / "nodes").glob("*.py"))]
NODE_IDS = sorted(
    identifier
    for path in SOURCES
    for identifier in re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))
)  # fmt: skip


def project() -> dict[str, object]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and later read TOML")
    loaded: dict[str, object] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    return loaded


def test_every_node_has_an_id_of_its_own() -> None:
    assert len(NODE_IDS) == len(set(NODE_IDS)) >= 14


def test_no_execute_is_longer_than_twenty_lines() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "execute":
                assert node.end_lineno is not None
                assert node.end_lineno - node.body[0].lineno < 20, path.name


def test_the_root_imports_without_comfyui_and_registers_nothing() -> None:
    code = f"""
import importlib.util, sys
before = list(sys.path)
spec = importlib.util.spec_from_file_location("anything", {str(REPOSITORY / "__init__.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert not hasattr(module, "comfy_entrypoint") and not hasattr(module, "WEB_DIRECTORY")
assert sys.path == before and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nodes_import_the_core_relatively_and_leave_the_path_alone() -> None:
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert "sys.path" not in text
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & {"rali_core", "nodes"}, path


def test_nothing_heavy_and_no_model_management_is_imported_at_start() -> None:
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:  # top level only
            if isinstance(node, ast.ImportFrom | ast.Import):
                text = ast.unparse(node)
                assert not re.search(r"\b(comfy\.|open_clip|timm|scorer|quality_map|sheet)\b", text), f"{path}: {text}"


def test_requirements_are_the_dependencies_without_torch() -> None:
    listed = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = [line for line in listed if line and not line.startswith("#")]
    dependencies = project()["project"]["dependencies"]  # type: ignore[index]
    assert required == [line for line in dependencies if not re.match(r"torch\b", line)]
    assert not any(re.search(r"<|==|~=", line) for line in required)


def test_the_registrys_entry_is_complete() -> None:
    table = project()["tool"]["comfy"]  # type: ignore[index]
    assert set(table) >= {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui"}
    for key, ratio in (("Icon", 1), ("Banner", 21 / 9)):
        with Image.open(REPOSITORY / "docs" / "images" / table[key].rsplit("/", 1)[1]) as image:
            assert image.width / image.height == pytest.approx(ratio)


@pytest.fixture(scope="module")
def archived(tools: dict[str, Any]) -> set[Path]:
    return {REPOSITORY / file for file in tools["list_archive"]() if (REPOSITORY / file).is_file()}


def test_the_archive_holds_what_the_nodes_need_and_no_other_code(
    archived: set[Path], imported_files: Callable[[Path, Iterable[ast.AST]], set[Path]]
) -> None:
    needed: set[Path] = set()
    waiting = set(SOURCES)
    while waiting:
        path = waiting.pop()
        needed.add(path)
        waiting |= imported_files(path, ast.walk(ast.parse(path.read_text(encoding="utf-8")))) - needed
    code = {path for path in archived if path.suffix == ".py"}
    assert len(code) > 30
    assert needed - code == set(), "nodes import these: .comfyignore must keep them"
    assert code - needed == set(), "no node imports these: .comfyignore must leave them out"


def test_the_archive_calls_nothing_that_the_registrys_scanner_hides_a_pack_for(archived: set[Path]) -> None:
    for path in sorted(path for path in archived if path.suffix == ".py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not re.search(r"\b(subprocess|pickle|ctypes|socket)\b", ast.unparse(node)), path
            elif isinstance(node, ast.Call):
                assert not re.fullmatch(
                    r"exec|eval|compile|__import__|os\.(system|popen|exec\w*)", ast.unparse(node.func)
                ), path


def test_the_archive_without_the_model_is_small(archived: set[Path]) -> None:
    models = {path for path in archived if path.suffix == ".safetensors"}
    assert {path.name for path in models} == {"rali-small.safetensors"}
    sizes = {path: len(zlib.compress(path.read_bytes())) for path in archived - models}
    print(f"the archive without the model: {len(sizes)} files, {sum(sizes.values()) / 1e6:.2f} MB")
    assert sum(sizes.values()) < 1_000_000, sorted(sizes, key=sizes.__getitem__)[-10:]


@pytest.mark.parametrize("node", NODE_IDS)
def test_every_node_has_a_help_page_with_an_image_and_names_in_all_languages(node: str) -> None:
    page = (REPOSITORY / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
    (image,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert (REPOSITORY / "web" / "docs" / image).stat().st_size < 300_000
    for language in ("en", "zh", "ja"):
        names = json.loads((REPOSITORY / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
        assert names[node]["display_name"]


@pytest.mark.parametrize("language", ["zh", "ja"])
@pytest.mark.parametrize("node", ["RALI_Score", "RALI_BestOfN", "RALI_Filter", "RALI_Gate", "RALI_BestOfNSampler"])
def test_translated_help_pages_name_every_input_and_output(node: str, language: str) -> None:
    page = (REPOSITORY / "web" / "docs" / node / f"{language}.md").read_text(encoding="utf-8")
    names = json.loads((REPOSITORY / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))[node]
    as_in_ksampler = {"cfg", "scheduler", "positive", "negative", "latent_image"}
    wanted = {name: entry["name"] for name, entry in names["inputs"].items() if name not in as_in_ksampler}
    wanted |= {f"output {place}": entry["name"] for place, entry in names["outputs"].items()}
    assert len(wanted) > 10
    for name, text in wanted.items():
        if "2" not in text:  # "attachment 1 ... attachment 3"
            assert text in page, name
    english = (REPOSITORY / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
    assert page.count("\n| ") >= english.count("\n| ")  # no row of the table is missing


def test_every_note_of_a_node_has_its_translations() -> None:
    code = (REPOSITORY / "nodes" / "_panel.py").read_text(encoding="utf-8")
    (english,) = (
        ast.literal_eval(part.value)
        for part in ast.parse(code).body
        if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "NOTES"
    )
    texts = (REPOSITORY / "web" / "js" / "texts.js").read_text(encoding="utf-8")
    translated = re.findall(r"\n    notes: \{\n(.*?)\n    \},", texts, re.DOTALL)
    assert len(translated) == 2
    fields = re.compile(r"\{(\w+)")
    for block in translated:
        found = dict(re.findall(r'^ *"?([a-z ]+)"?: "(.*)",$', block, re.MULTILINE))
        assert set(found) == set(english)
        for key, text in found.items():
            known = {*fields.findall(english[key]), "count"}  # zh and ja count tries with the number alone
            assert set(fields.findall(text)) <= known, key


def test_every_workflow_has_a_thumbnail() -> None:
    files = sorted((REPOSITORY / "workflows").glob("*.json"))
    assert len(files) >= 6
    for path in files:
        assert json.loads(path.read_text(encoding="utf-8"))["nodes"]
        assert path.with_suffix(".jpg").stat().st_size < 60_000
