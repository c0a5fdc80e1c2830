"""The words around the code: tooltips, help pages, translations, and what the pages link to and name."""

import ast
import importlib
import json
import re
import textwrap
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from pack_without_host import Slot, our_nodes

import hyperlora_core
from hyperlora_core.catalog import load_catalog
from hyperlora_core.cli import COMMANDS

ROOT = Path(__file__).parents[1]
HELP = ROOT / "web" / "docs"
LOCALES = ROOT / "locales"
LANGUAGES = ("en", "zh")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "models" / "README.md", *HELP.rglob("*.md")])
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def schemas() -> dict[str, SimpleNamespace]:
    """The nodes' schemas by id, from the code that ComfyUI runs, without ComfyUI."""
    with our_nodes() as nodes:
        return {name: node.define_schema() for name, node in nodes.items()}


def words(schema: SimpleNamespace) -> dict:
    """A node's texts in the form of nodeDefs.json."""

    def slot(one: Slot) -> dict:
        return {"name": one.options.get("display_name", one.id), "tooltip": one.options.get("tooltip")}

    return {
        "display_name": schema.display_name,
        "description": schema.description,
        # the editor looks for ids with dots under a name with underscores
        "inputs": {one.id.replace(".", "_"): slot(one) for one in schema.inputs},
        "outputs": {str(number): slot(one) for number, one in enumerate(schema.outputs)},
    }


def read(language: str, file: str) -> dict:
    return json.loads((LOCALES / language / file).read_text(encoding="utf-8"))


def paths(tree: dict, at: str = "") -> set[str]:
    """Every leaf's path."""
    return {
        leaf
        for key, value in tree.items()
        for leaf in (paths(value, f"{at}{key}/") if isinstance(value, dict) else {at + key})
    }


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_nodes_are_read(schemas):
    assert len(schemas) >= 13 and all(name.startswith("HyperLoRA") for name in schemas)


def test_every_node_and_slot_has_a_sentence(schemas):
    silent = [
        f"{node}: {path}"
        for node, schema in schemas.items()
        for path in paths(words(schema))
        if not leaf(words(schema), path)
    ]
    assert sorted(silent) == []


def leaf(tree: dict, path: str) -> str | None:
    for key in path.split("/"):
        tree = tree and tree[key]
    return tree


@pytest.mark.parametrize("language", LANGUAGES)
def test_locales_cover_exactly_the_nodes(schemas, language):
    wanted = paths({node: words(schema) for node, schema in schemas.items()})
    found = read(language, "nodeDefs.json")
    assert sorted(wanted ^ paths(found)) == []
    assert [path for path in paths(found) if not leaf(found, path)] == []


def test_english_locale_is_what_the_nodes_say(schemas):
    said, written = {node: words(schema) for node, schema in schemas.items()}, read("en", "nodeDefs.json")
    assert [path for path in sorted(paths(said)) if leaf(said, path) != leaf(written, path)] == []


def test_chinese_locale_is_chinese():
    found = read("zh", "nodeDefs.json")
    sentences = [path for path in paths(found) if path.endswith(("tooltip", "description", "display_name"))]
    assert [path for path in sentences if not CHINESE.search(leaf(found, path))] == []


def test_main_locales_name_the_same_things():
    english, chinese = (read(language, "main.json") for language in LANGUAGES)
    assert english and paths(english) == paths(chinese)


def test_every_node_has_help_in_both_languages(schemas):
    wanted = {HELP / f"{node}.md" for node in schemas} | {HELP / node / "zh.md" for node in schemas}
    assert sorted(wanted ^ set(HELP.rglob("*.md"))) == []


def test_help_explains_exactly_the_inputs_and_outputs(schemas):
    wrong = []
    for node, schema in schemas.items():
        wanted = sorted(slot.id for slot in [*schema.inputs, *schema.outputs])
        for page in (HELP / f"{node}.md", HELP / node / "zh.md"):
            # a row of a table: | `id` | what |, in Chinese with a name before the id
            explained = sorted(re.findall(r"^\| [^|`]*`([\w.]+)` \|", text_of(page), re.MULTILINE))
            if explained != wanted:
                wrong.append(f"{page.relative_to(HELP)}: {explained} instead of {wanted}")
    assert wrong == []


def test_help_says_which_inputs_the_editor_hides_at_first(schemas):
    wrong = []
    for node, schema in schemas.items():
        wanted = [slot.id for slot in schema.inputs if slot.options.get("advanced")]
        for page, sentence in (
            (HELP / f"{node}.md", r"^Under \*Show advanced inputs\*: (.+)\.$"),
            (HELP / node / "zh.md", r"^[^|`]*\u9ad8\u7ea7\u8f93\u5165[^|`]*(`.+)\u3002$"),
        ):
            said = "".join(re.findall(sentence, text_of(page), re.MULTILINE))
            if re.findall(r"`([\w.]+)`", said) != wanted:
                wrong.append(f"{page.relative_to(HELP)}: {said or 'nothing'} instead of {wanted}")
    assert wrong == []


def test_chinese_help_names_the_nodes_as_the_editor_does(schemas):
    names = read("zh", "nodeDefs.json")
    assert [
        node for node in schemas if not text_of(HELP / node / "zh.md").startswith(f"# {names[node]['display_name']}")
    ] == []


def test_readme_lists_every_node(schemas):
    lists = text_of(ROOT / "README.md"), text_of(ROOT / "docs" / "authors-pack.md")
    old = {node for node, schema in schemas.items() if getattr(schema, "is_deprecated", False)}
    assert [node for node, schema in schemas.items() if f"| {schema.display_name} |" not in lists[node in old]] == []


def test_no_page_names_a_node_that_does_not_exist(schemas):
    known = {*schemas, *hyperlora_core.__all__}
    strangers = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        for name in re.findall(r"\bHyperLoRA[A-Z]\w+", text_of(page))
        if name not in known
    ]
    assert strangers == []


def test_links_inside_the_project_lead_somewhere():
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
            if "://" in target or target.startswith("mailto:"):
                continue
            if HELP in page.parents:  # ComfyUI opens it below its own address, where no page is
                broken.append(f"{page.relative_to(ROOT)}: {target} (help pages can't link to files)")
                continue
            file, _, anchor = target.partition("#")
            found = (page.parent / file).resolve() if file else page
            if not found.exists() or (anchor and anchor not in anchors(found)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, spaces to hyphens, other signs dropped."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_commands_that_pages_name_exist():
    unknown, catalog = [], load_catalog()
    for page in PAGES:
        code = re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text_of(page), re.DOTALL)
        for line in "\n".join(block or span for block, span in code).splitlines():
            for call in re.findall(
                r"(?:^|[/\\ ])(?:-m hyperlora_core|python(?:\.exe)?(?: -s)? \.|hyperlora) +(.+)", line
            ):
                command, *rest = call.split()
                if command not in COMMANDS:
                    unknown.append(f"{page.relative_to(ROOT)}: {command}")
                if command == "download" and rest and re.fullmatch(r"[a-z][\w-]+", rest[0]) and rest[0] not in catalog:
                    unknown.append(f"{page.relative_to(ROOT)}: download {rest[0]}")
    assert unknown == []


def test_python_examples_parse_and_import_what_exists():
    wrong = []
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL):
            for node in ast.walk(ast.parse(textwrap.dedent(block))):
                if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "hyperlora_core":
                    module = importlib.import_module(node.module)
                    wrong += [
                        f"{page.name}: {name.name}"
                        for name in node.names
                        if not hasattr(module, name.name)
                        and not (hasattr(module, "__path__") and find_spec(f"{node.module}.{name.name}"))
                    ]
    assert wrong == []


def test_the_map_names_every_module_and_package():
    page = text_of(ROOT / "CONTRIBUTING.md")
    library = ROOT / "hyperlora_core"
    modules = [f"nodes/{path.name}" for path in (ROOT / "nodes").glob("*.py")]
    modules += [path.name for path in library.glob("*.py") if not path.name.startswith("__")]
    modules += [f"{path.parent.name}/" for path in library.glob("*/__init__.py")]
    assert [name for name in modules if f"`{name}`" not in page] == []
    unnamed = {"__init__.py", *(f"{name}.py" for name in COMMANDS)}  # the commands' modules are named together
    for package in {path.parent for path in library.glob("*/__init__.py")}:
        (row,) = re.findall(rf"^\| `{package.name}/` .*$", page, re.MULTILINE)
        named = re.findall(rf"`({package.name}/\w+\.py)`", page) + re.findall(r"`([\w*]+\.py)`", row)
        files = {path.name for path in package.glob("*.py")} - unnamed
        assert [name for name in files if not any(fnmatch(name, Path(one).name) for one in named)] == [], package.name
        assert [one for one in named if not list(package.glob(Path(one).name))] == [], package.name
    named = re.findall(r"`(nodes/\w+\.py)`", page)
    assert [name for name in named if not (ROOT / name).exists()] == []
