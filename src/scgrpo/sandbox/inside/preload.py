"""Modules that programs are likely to import: loaded once, before the forks, they cost a run nothing."""

from __future__ import annotations

import contextlib
import importlib
import site
import sys

_USUAL = (
    "abc array ast atexit base64 binascii bisect builtins calendar cmath collections collections.abc contextlib copy "
    "dataclasses datetime decimal enum fractions functools hashlib heapq inspect io itertools json keyword linecache "
    "locale math numbers operator os os.path queue random re statistics string struct sys textwrap threading time "
    "timeit traceback types typing unicodedata warnings weakref zlib"
)
_MORE = (
    "asyncio bz2 cProfile codecs collections.abc colorsys concurrent.futures configparser csv ctypes difflib dis "
    "encodings.ascii encodings.idna encodings.latin_1 encodings.utf_16 errno fnmatch getopt argparse gc gettext glob "
    "graphlib gzip hmac html html.parser ipaddress logging lzma marshal optparse pathlib pdb pickle pprint profile "
    "reprlib sched secrets select selectors shlex signal socket sqlite3 stat sysconfig tempfile token tokenize trace "
    "unittest unittest.mock urllib.parse uuid xml.dom.minidom xml.etree.ElementTree zipfile zoneinfo"
)


def load(*, everything: bool) -> None:
    """Import the usual modules; `everything` for runs that cannot open a file later. What is missing is left out."""
    for name in (_USUAL + " " + _MORE if everything else _USUAL).split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    site.setquit()  # exit() and quit(), which programs use and `python -S` lacks


def forget(package: str) -> None:
    """Take this package's own modules out of a run's sight."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
