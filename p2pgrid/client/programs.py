"""Commands instead of functions: which of their words are files that travel, and how a job of them is sent.

A script or executable that is given by a path goes along with the job, and the modules of its own that a Python script
imports. What is on the PATH, or in a folder of the system, is taken to be where tasks run.

Rule: what is wrong with the words is one line, and raised before anything is sent.
"""

import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2pgrid.client.feed import Feed
from p2pgrid.client.gathering import Gathered, contents, gather, stamp_of
from p2pgrid.client.imports import imported, reached
from p2pgrid.client.modules import Place
from p2pgrid.client.pickling import Call, Function, pickled_call
from p2pgrid.client.session import Session
from p2pgrid.client.trees import Tree
from p2pgrid.client.upload import Upload
from p2pgrid.core.batch import CALLS, ITEMS, content_id, encode_batch, program
from p2pgrid.core.errors import GridError, QuotaExceeded
from p2pgrid.core.options import TaskOptions, is_name
from p2pgrid.core.record import Spec
from p2pgrid.core.tree import TREE_BYTES_MAX, pack_tree
from p2pgrid.core.units import format_size, parse_duration

JOB_ID_BYTES = 16
_SYSTEM = ("/bin", "/sbin", "/usr", "/lib", "/lib64", "/opt", "/etc", "/nix", "/snap", "/System", "/Library")
_INTERPRETER = re.compile(r"(python|pypy)[0-9.]*|(ba|da|z|k|fi)?sh|perl|ruby|node|deno|Rscript|julia|lua|php|tclsh|awk")
_CODE_FLAGS = frozenset({"-c", "-m", "-e", "-E", "-r"})
"""With these the word after it is code, or a name: no file."""


class Program:
    """A command line, ready to travel; where a function may be submitted, so may this."""

    def __init__(self, argv: Sequence[str], *, is_script: bool = False) -> None:
        """Take the words as they are typed; `is_script`: the first is a file, whether or not it looks like a path.

        Raises:
            GridError: a file is not there, is a folder or cannot be started; code `usage`.
            QuotaExceeded: what would go along is too large.
        """
        self.argv = list(argv)
        self.name = Path(argv[0]).name
        """What its job is called if nothing else was said; no other word, for one may be a secret."""
        self._files: dict[str, Path] = {}
        self._modules: dict[str, Place] = {}
        words: list[Any] = list(argv)
        if _INTERPRETER.fullmatch(Path(argv[0]).name):  # one in an environment of yours is of no use without that
            self._interpreted(words)
        elif is_script or "/" in argv[0]:
            words[0:1] = self._script(argv[0])
        else:
            self._check_name(argv[0])
        self.function = self._packed(words)

    @staticmethod
    def _check_name(name: str) -> None:
        if not name or "\0" in name:
            raise GridError(f"{name!r} is no command", code="usage", next="p2pgrid run -- uname -m")
        if Path(name).is_file() and shutil.which(name) is None:
            raise GridError(f"{name} is no command but a file here", code="usage", next=f"give its path: ./{name}")

    def _interpreted(self, words: list[Any]) -> None:
        """Let the script go along that an interpreter is told to run."""
        for number, word in enumerate(words[1:], 1):
            if word in _CODE_FLAGS:
                return
            if not word.startswith("-"):
                path = Path(word)
                if path.is_file() and not _is_of_the_system(path):
                    self.name = path.name
                    words[number] = self._taken(path, is_python=Path(words[0]).name.startswith("py"))
                return

    def _script(self, word: str) -> list[Any]:
        path = Path(word)
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise GridError(f"{word}: {why}", code="usage", next="check the path; it is one of this machine") from error
        if stat.S_ISDIR(mode):
            raise GridError(f"{word} is a folder", code="usage", next="name the program or script in it")
        if _is_of_the_system(path):
            return [word]
        if path.suffix == ".py":
            return [["python"], self._taken(path, is_python=True)]
        if not mode & stat.S_IXUSR:
            raise GridError(
                f"{word} cannot be started: it is not executable", code="usage",
                next=f"chmod +x {word}, or name what runs it: sh {word}",
            )  # fmt: skip
        return [self._taken(path, is_python=False)]

    def _taken(self, path: Path, *, is_python: bool) -> list[str]:
        if is_python:
            folder = str(path.absolute().parent)
            sys.path.insert(0, folder)  # as it will be for the script
            try:
                self._modules = reached(imported(Place("__main__", path.absolute())))
            finally:
                sys.path.remove(folder)
        self._files[path.name] = path.absolute()
        return ["file", path.name]

    def _packed(self, words: list[Any]) -> Function:
        if not self._files:
            union = program(words, None)
            return Function(content_id(union), union, same_minor=False)
        gathered = gather(self._modules)
        for name, path in self._files.items():
            stamp = stamp_of(path)
            assert stamp is not None, "it was there a moment ago"
            gathered.files[name] = (path, stamp)
            gathered.bytes += stamp[1]
            if gathered.bytes > TREE_BYTES_MAX:
                raise QuotaExceeded(
                    f"{path} and what goes with it are more than {format_size(TREE_BYTES_MAX)}",
                    next="install it where tasks run, and name it without a path",
                )
        tree = _tree(gathered, self._modules)
        union = program(words, tree.id)
        return Function(content_id(union), union, tree, same_minor=False)

    def __repr__(self) -> str:
        return f"<Program {' '.join(self.argv)!r:.80}>"


def _tree(gathered: Gathered, places: dict[str, Place]) -> Tree:
    packed = pack_tree(contents(gathered))
    return Tree(content_id(packed), packed, places, gathered, time.monotonic())


def _is_of_the_system(path: Path) -> bool:
    """Whether that file is one of the machine's own: others have it, or another in its place."""
    places = os.path.normpath(path.absolute()), os.path.realpath(path)
    return any(place.startswith(f"{folder}/") for place in places for folder in _SYSTEM)


class Sender:
    """Sends jobs of commands through a session that reads none of their results: `p2pgrid run`, `map` and `submit`."""

    def __init__(self, session: Session) -> None:
        """Send through `session`."""
        self._session = session

    def once_each(self, what: Program, options: Sequence[TaskOptions], *, check: bool = False) -> bytes:
        """Send a job that runs the command once with each of these options; return its id once it is on disk.

        `check`: whatever ends with another code than 0 has failed.
        """
        upload = self._upload("calls", options[0], what)
        call = pickled_call((), {"check": True} if check else {})
        assert isinstance(call, bytes)
        runs = [(1, 0, number, CALLS, [call]) for number in range(len(options))]
        batch = encode_batch([what.function.id], [one.to_wire() for one in options], runs)
        session = self._session
        session.open(upload)
        with session.lock:
            session.keep(len(batch))
            session.say(upload.code(what.function) + upload.append(0, len(options), batch) + upload.close(len(options)))
        return self._accepted(upload)

    def for_each(self, what: Program, items: Sequence[str], options: TaskOptions) -> bytes:
        """Send a job that runs the command with each item in the place of `{}`; return its id once it is on disk."""
        upload = self._upload("map", options, what)
        session = self._session
        call = Call(what.function, options.to_wire(), lambda _: what.function)
        Feed(session, upload, call, items, lambda: session.open(upload), shape=ITEMS, total=len(items)).all()
        return self._accepted(upload)

    def _upload(self, kind: str, options: TaskOptions, what: Program) -> Upload:
        name = options.name or (what.name if is_name(what.name) else "")
        spec = Spec(
            kind=kind, name=name, session=self._session.id, submitted_s=time.time(),
            ttl_s=parse_duration(options.keep_for), detach=options.detach, copies=options.copies or 0,
            program=self._session.program,
        )  # fmt: skip
        return Upload(os.urandom(JOB_ID_BYTES), spec)

    def _accepted(self, upload: Upload) -> bytes:
        try:
            self._session.wait_acknowledged(upload)
        except BaseException:
            self._session.cancel(upload.job, None)
            raise
        return upload.job
