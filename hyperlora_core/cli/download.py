"""hyperlora download: the catalogued weights into ComfyUI's models folder."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from tqdm import tqdm

from ..catalog import COMPARISON, FIRST_PICTURE, CatalogItem, load_catalog, pick, readable
from ..download import download
from ..errors import HyperLoRAError
from ..folders import find_comfyui, models_folder, search_folders

HELP = "fetch the published weights, resumed and verified, into a ComfyUI models folder"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "items", nargs="*", metavar="ITEM", help="names from --list (default: those for a first picture)"
    )
    parser.add_argument("--models-folder", metavar="DIR", help="ComfyUI's models folder (default: found)")
    parser.add_argument("--list", action="store_true", help="show what there is, and what is there already")
    parser.add_argument("--comparison", action="store_true", help="also the weights of the methods to compare with")


def run(arguments: Namespace) -> int:
    """Run the command; 0 when everything asked for is in place."""
    if arguments.list:
        _print_list(arguments.models_folder)
        return 0
    items = pick(arguments.items)
    if arguments.comparison:
        items += [item for item in load_catalog().values() if item.group == COMPARISON and item not in items]
    folder = models_folder(arguments.models_folder)
    print(f"Into {folder}:")
    for item in items:
        print(f"  {item.name}: {item.title}, {readable(item.approximate_size)}, licence: {item.licence}")
    with _Bars() as bars:
        fetched = download([item.name for item in items], folder, bars.show)
    for one in fetched:
        print(f"{'downloaded' if one.fresh else 'was there '}  {one.path}")
    return 0


def _print_list(named: str | None) -> None:
    folders = search_folders(models_folder(named)) if named or find_comfyui() else []
    print(f"{'ITEM':<17}{'FOR':<15}{'SIZE':<9}{'HERE':<8}WHAT")
    for item in load_catalog().values():
        needed = "first picture" if item.group == FIRST_PICTURE else item.group
        size = readable(item.approximate_size)
        print(f"{item.name:<17}{needed:<15}{size:<9}{_here(item, folders):<8}{item.title}: {item.purpose}")
        print(f"{'':<49}{item.licence}; {item.page}")


def _here(item: CatalogItem, folders: list[Path]) -> str:
    if not folders:
        return "?"
    if all(item.find(folders)):
        return "yes"
    try:
        found = [file.find(folders) for file in item.files]
    except HyperLoRAError:
        return "broken"
    return "partly" if any(found) else "no"


class _Bars:
    """One progress bar for whatever is being done now."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.what = ""

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, what: str, done: int, total: int | None) -> None:
        if self.bar is None or self.what != what:
            self.__exit__()
            self.what = what
            self.bar = tqdm(desc=what, total=total, initial=done, unit="B", unit_scale=True, disable=None)
        self.bar.update(done - self.bar.n)
