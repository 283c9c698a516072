"""Where dictionaries lie: shipped ones, folders of any names, repositories of the Hub, and releases of SAELens."""

import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bilinear_circuits.utilities.folders import by_library, download, read_json

if TYPE_CHECKING:
    from bilinear_circuits.dictionaries.dictionary import Dictionary

Side = Literal["hook_in", "hook_out"]
SIDES: tuple[Side, Side] = ("hook_in", "hook_out")
_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")
_PLACES: Mapping[str, Side] = {
    **dict.fromkeys(
        ("mlp.hook_in", "ln2.hook_normalized", "ln2.hook_out", "hook_mlp_in", "mlp.gate.hook_in"), "hook_in"
    ),
    **dict.fromkeys(("mlp.hook_out", "hook_mlp_out", "mlp.out.hook_out"), "hook_out"),
}
_CONFIG, _WEIGHTS, _DEPTH = "cfg.json", "sae_weights.safetensors", 4


def folders_in(root: Path) -> dict[int, dict[Side, Path]]:
    """Find the dictionaries of a folder, by layer and side of the MLP.

    Folders named blocks.L.mlp.hook_in and hook_out are taken by their names. Where there are none, SAELens folders of
    any names are, up to four levels deep, by the hook that each says it was trained at.

    Raises:
        ValueError: If two are of one place, or a cfg.json is damaged.
    """
    found: dict[int, dict[Side, Path]] = defaultdict(dict)
    for side in SIDES:
        for path in root.glob(f"blocks.*.mlp.{side}"):
            if path.is_dir() and (layer := path.name.split(".")[1]).isdecimal():
                found[int(layer)][side] = path
    if found:
        return dict(sorted(found.items()))
    for depth in range(_DEPTH + 1):
        for file in sorted(root.glob("/".join(["*"] * depth + [_CONFIG]))):
            place = _place(file) if (file.parent / _WEIGHTS).is_file() else None
            if place is None:
                continue
            number, at = place
            if at in found[number]:
                raise ValueError(
                    f"saes must hold one dictionary for each place, got {found[number][at]} and {file.parent} for"
                    f" blocks.{number}.mlp.{at}. Name one of the two folders."
                )
            found[number][at] = file.parent
    return dict(sorted(found.items()))


def _place(file: Path) -> tuple[int, Side] | None:
    """Layer and side of the MLP that a SAELens folder is of, if it is of one."""
    config = read_json(file, _CONFIG)
    metadata = config.get("metadata")
    hook = (metadata.get("hook_name") if isinstance(metadata, dict) else None) or config.get("hook_name")
    match = _HOOK.fullmatch(hook) if isinstance(hook, str) else None
    side = None if match is None else _PLACES.get(match[2])
    return None if match is None or side is None else (int(match[1]), side)


def fetched(name: str) -> Path | None:
    """Find the folder of a SAELens release with ids, or of a repository of the Hub; None where a name is neither.

    A release is written RELEASE/ID, with several ids RELEASE/ID,ID: SAELens fetches and converts it, and it is kept as
    a folder in the cache of this package, $BILINEAR_CIRCUITS_CACHE or ~/.cache/bilinear-circuits.

    Raises:
        ValueError: If the release has no such id, or no id is given.
        OSError: If it cannot be fetched.
    """
    release, _, rest = name.partition("/")
    if name.startswith((".", "/", "~")) or "\\" in name:
        return None
    known = _releases()
    if release in known:
        ids = [one.strip() for one in rest.split(",") if one.strip()]
        if not ids or not all(one in known[release] for one in ids):
            raise ValueError(
                f"saes must name ids of the SAELens release {release}, as {release}/ID, got {rest or 'none'!r}. It has"
                f" {', '.join(list(known[release])[:3])} and {max(0, len(known[release]) - 3)} more."
            )
        return _kept(release, ids)
    if len(Path(name).parts) == 2:
        return download(name, "saes", [f"*{_CONFIG}", f"*{_WEIGHTS}", "*names.json"], [])
    return None


def _releases() -> dict[str, list[str]]:
    """Releases that SAELens knows, and their ids."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return {name: list(one.saes_map) for name, one in get_pretrained_saes_directory().items()}


def _kept(release: str, ids: list[str]) -> Path:
    """The folder in which dictionaries of a release are kept, fetched where they are not there yet."""
    from sae_lens import SAE

    home = os.environ.get("BILINEAR_CIRCUITS_CACHE") or str(Path.home() / ".cache/bilinear-circuits")
    root = Path(home) / "saes" / release / "+".join(one.replace("/", "_") for one in ids)
    for one in ids:
        folder = root / one.replace("/", "_")
        if folder.is_dir():
            continue
        with by_library("saes must be a release that SAELens can fetch", f"{release}/{one}"):
            sae = SAE.from_pretrained(release, one, device="cpu")
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent) as partial:
            sae.save_model(Path(partial) / "sae")
            os.replace(Path(partial) / "sae", folder)
    return root


def load_pair(folders: Mapping[Side, Path], root: Path, layer: int, device: str) -> "tuple[Dictionary, Dictionary]":
    """Load the dictionaries of one MLP, under the names of their folders within the root.

    The input's coordinates stand in where it has no dictionary.
    """
    from bilinear_circuits.dictionaries.dictionary import Dictionary

    loaded: dict[Side, Dictionary] = {
        side: Dictionary.load(path, path.relative_to(root).as_posix() if path != root else root.name, device=device)
        for side, path in folders.items()
    }
    if "hook_in" not in loaded:
        loaded["hook_in"] = Dictionary.coordinates(loaded["hook_out"].d_in, f"blocks.{layer}.mlp.hook_in").to(device)
    return loaded["hook_in"], loaded["hook_out"]
