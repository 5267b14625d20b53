"""A mix built: its sources' conversations as one LLaVA JSON, or one each, and a report beside the published counts.

In: a mix, and the folder with the raw sets. Out: files that are there when all of them are whole.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from glob import escape
from pathlib import Path
from secrets import token_hex
from typing import Any

from ... import console
from ...errors import RunError, UserError, nearest
from .arrange import conversations
from .inputs import Inputs
from .mix import Source, load_mix
from .sets import SETS


def build(
    mix: str, raw: Path, out: Path, seed: int | None = None, only: Sequence[str] = (), per_set: bool = False,
    tokenizer: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Writes the mix to `out` and tells what went into it.

    Args:
        mix: a YAML file, or a shipped mix's name.
        raw: folder with the raw sets.
        out: a .json or .jsonl; with `per_set` a folder that gets NAME.json of each source.
        seed: of all that is drawn; by default the mix's.
        only: names of the sources to build.
        tokenizer: folder or hub id of the LLM's tokenizer, for sources that end after a number of tokens.

    Raises:
        UserError: the mix is wrong, files are missing (all are named), a record is malformed, or `out` is there already.
        RunError: a source gives no row.
    """
    began, loaded = time.monotonic(), load_mix(mix)
    seed = loaded.seed if seed is None else seed
    sources = _chosen(loaded.sources, only)
    targets = {name: out / f"{name}.json" if per_set else out for name in sources}
    _can_write(out, per_set, targets.values())
    files = {name: _files(source, raw) for name, source in sources.items()}
    _are_there(sources, files)
    _are_different(sources, files)
    count = _lengths(sources, tokenizer)
    report = []
    with _Writer() as writer:
        for name, source in sources.items():
            found = _inputs(source, files[name], count(source))
            rows = writer.write(targets[name], conversations(name, source, found, seed))
            if not rows:
                raise RunError(f"{name} gives no row; left out: {dict(found.left) or 'nothing'}. Nothing is written.")
            console.note(f"{name}: {rows:,} rows from {found.records:,} records.")
            report.append(_told(name, source, rows, found, targets[name]))
        writer.finish()
    published = [s["published"] for s in report]
    return {
        "mix": loaded.title, "out": str(out), "seed": seed, "rows": sum(s["rows"] for s in report),
        "published": sum(published) if all(published) else None, "seconds": round(time.monotonic() - began, 1),
        "sources": report,
    }  # fmt: skip


def _chosen(sources: Mapping[str, Source | None], only: Sequence[str]) -> dict[str, Source]:
    for name in only:
        if name not in sources:
            raise UserError(f"The mix has no source {name!r}.{nearest(name, sources)} It has {', '.join(sources)}.")
    return {name: source for name, source in sources.items() if source is not None and (not only or name in only)}


def _files(source: Source, raw: Path) -> dict[str, list[Path]]:
    """Where the source's files lie: as it says, or in the set's own layout."""
    named = {**SETS[source.set].files, **source.files}
    lists = {role: value if isinstance(value, list) else [value] for role, value in named.items() if value is not None}
    return {role: [raw / path for path in paths] for role, paths in lists.items()}


def _are_there(sources: Mapping[str, Source], files: Mapping[str, Mapping[str, Sequence[Path]]]) -> None:
    """Raises one `UserError` that names every file that is missing, and what to get."""
    wrong = []
    for name, source in sources.items():
        lost = [str(p) for paths in files[name].values() for p in paths if not _is_file(p)]
        if lost:
            wrong.append(f"{name} ({SETS[source.set].get}): {', '.join(lost)}")
    if wrong:
        text = "\n".join(f"  - {w}" for w in wrong)
        raise UserError(
            f"Files of {len(wrong)} source{'s' * (len(wrong) > 1)} are not there. Get what is named, put it there, name "
            f"other places under `files` in a mix of your own, or leave sources out with --only:\n{text}"
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _are_different(sources: Mapping[str, Source], files: Mapping[str, Mapping[str, Sequence[Path]]]) -> None:
    """Raises `UserError` where a list names a file twice, so that its records would count twice; sets may share their boxes."""
    for name in sources:
        for role, paths in files[name].items():
            known: set[Path] = set()
            for path in (p.resolve() for p in paths if role != "instances"):
                if path in known:
                    raise UserError(f"{name}: files.{role} names {path} twice; leave one of them out.")
                known.add(path)


def _inputs(source: Source, files: dict[str, list[Path]], length: Callable[[str], int]) -> Inputs:
    images = SETS[source.set].images if source.images is None else source.images
    return Inputs(files, images.strip("/"), source.split, length, source.columns)


def estimate(text: str) -> int:
    """Tokens of a text where no tokenizer is named: a third of its bytes in UTF-8, rounded up, which is rather too many."""
    return -(-len(text.encode("utf-8", "replace")) // 3)


def _lengths(sources: Mapping[str, Source], tokenizer: str | None) -> Callable[[Source], Callable[[str], int]]:
    """Which function counts a source's tokens."""
    loaded: dict[str, Callable[[str], int]] = {}

    def of(source: Source) -> Callable[[str], int]:
        name = tokenizer or source.tokenizer
        if not name or source.max_tokens is None:
            return estimate
        if name not in loaded:
            from ..processing import load_tokenizer

            tokens = load_tokenizer(name)[0]
            loaded[name] = lambda text: len(tokens(text, add_special_tokens=False).input_ids)
        return loaded[name]

    for source in sources.values():
        of(source)  # a tokenizer that is not there is told before anything is read
    return of


def _told(name: str, source: Source, rows: int, found: Inputs, file: Path) -> dict[str, Any]:
    return {
        "name": name, "set": source.set, "rows": rows, "published": source.published, "records": found.records,
        "left_out": dict(found.left), "file": str(file),
    }  # fmt: skip


def _can_write(out: Path, per_set: bool, targets: Any) -> None:
    """Raises `UserError` where nothing could be written."""
    if not per_set and out.suffix.lower() not in (".json", ".jsonl"):
        raise UserError(f"--out {out}: name a file that ends in .json or .jsonl, or a folder and --per-set.")
    for target in targets:
        try:
            _partial(target).lstat()
        except (
            OSError,
            ValueError,
        ) as error:  # that it is not there is as it should be; that its name is too long is not
            if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
                raise UserError(f"--out {str(out)[:80]!r}: no file can have this name; name a shorter one.") from None
        if os.path.lexists(target):
            raise UserError(f"--out: {target} is there already; name another place or remove it.")
    if per_set and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file, and --per-set writes a file for each source; name a folder.")
    folder = out if per_set else out.parent
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"--out {out}: nothing can be written in {there}.")


class _Writer(ExitStack):
    """Files under other names until all are whole; none of them stays where that does not come."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[Path, tuple[Path, Any]] = {}

    def write(self, target: Path, rows: Iterable[Any]) -> int:
        """Adds the rows; returns how many they are."""
        lines, first, count = target.suffix.lower() == ".jsonl", target not in self._open, 0
        if first:
            self._begin(target)
        file = self._open[target][1]
        for row in rows:
            file.write(("" if lines else "[\n" if first and not count else ",\n") + json.dumps(row) + "\n" * lines)
            count += 1
        return count

    def _begin(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{escape(target.name)}.*.partial"):
            _remove_unheld(left)
        partial = _partial(target)
        self.callback(partial.unlink, missing_ok=True)
        self._open[target] = partial, self.enter_context(partial.open("x", encoding="utf-8"))
        _lock(self._open[target][1])

    def finish(self) -> None:
        """Gives all files their names.

        Raises:
            UserError: something has appeared under one of them since the build began; it stays, and no file of this build does.
        """
        for target, (_, file) in self._open.items():
            file.write("" if target.suffix.lower() == ".jsonl" else "\n]\n")
            file.flush()
            os.fsync(file.fileno())
        placed: list[Path] = []
        try:
            for target, (partial, _) in self._open.items():
                _place(partial, target)
                placed.append(target)
        except FileExistsError:
            for path in placed:
                path.unlink(missing_ok=True)
            raise UserError(
                f"--out: {target} appeared while this was built. It is left as it is, and nothing of this build is kept; "
                "name another place, or remove it, and build again."
            ) from None


def _partial(target: Path) -> Path:
    """A name of its own for what becomes the target."""
    return target.with_name(f".{target.name}.{os.getpid()}-{token_hex(3)}.partial")


def _place(partial: Path, target: Path) -> None:
    """Gives the file its name, if nothing has it.

    Raises:
        FileExistsError: something has.
    """
    try:
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: the name is taken first, by an empty file
        target.open("x").close()
        partial.replace(target)


def _lock(file: Any) -> bool:
    """Whether this process now holds the file, which the system ends with the process; no where files cannot be held."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _remove_unheld(partial: Path) -> None:
    """Removes what a build left that was killed; a build that runs holds its file."""
    with suppress(OSError), partial.open("r+b") as file:
        if _lock(file):
            partial.unlink()


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The report for people."""
    yield f"{found['mix']}: {found['rows']:,} rows" + (
        f" of {found['published']:,} published" if found["published"] else ""
    )
    for source in found["sources"]:
        published = source["published"]
        beside = (
            ""
            if not published
            else " as published"
            if published == source["rows"]
            else f", published {published:,} ({source['rows'] - published:+,})"
        )
        yield f"  {source['name']}: {source['rows']:,} rows{beside}, from {source['records']:,} records"
        for reason, count in source["left_out"].items():
            yield f"    left out: {count:,} {reason}"
    yield f"Written to {found['out']} with seed {found['seed']} in {found['seconds']:,} seconds."
