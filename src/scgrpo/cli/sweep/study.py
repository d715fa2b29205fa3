"""What a sweep's YAML says, checked before anything is built. No framework is needed to read it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from scgrpo.errors import ConfigError
from scgrpo.runs.results import Stage

Settings = dict[str, Any]
KEEPABLE = ("model", "rollouts")
# What the sweep itself decides for every run.
RESERVED = (
    *("seed", "output_dir", "config", "compare_with", "side_by_side", "on_existing", "dry_run"),
    *("resume_from_checkpoint", "save_strategy", "rollouts_every"),
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Testbed:
    """A recipe, the starting models to train from (each a bundle of settings), and settings of its own."""

    __test__ = False  # not one of pytest's

    recipe: str
    bases: dict[str, Settings] = field(default_factory=lambda: {"default": {}})
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Tuning:
    """Learning rates to try for every method alike, on which seeds and bases (None: all)."""

    learning_rates: list[float]
    seeds: list[int]
    bases: list[str] | None = None
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Final:
    """The runs that count. `learning_rates` is for sweeps without tuning; None: the settings' own."""

    seeds: list[int]
    more_seeds: dict[str, list[int]] = field(default_factory=dict)
    learning_rates: list[float] | None = None
    bases: list[str] | None = None
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A whole sweep.

    Attributes:
        settings: of all runs; then come those of the testbed, the base, the method and the stage, the later winning.
        methods: settings by the sweep's name for them.
        keep: `model`, `rollouts`: what run directories hold beyond metrics and evaluations.
        timeout_s: seconds after which a run counts as hung.
    """

    name: str
    testbeds: dict[str, Testbed]
    methods: dict[str, Settings]
    final: Final
    tune: Tuning | None = None
    settings: Settings = field(default_factory=dict)
    keep: list[str] = field(default_factory=list)
    timeout_s: float | None = None

    def bases(self, stage: Stage, testbed: str) -> list[str]:
        """Bases of a testbed that a stage trains from."""
        own = self.final if stage == "final" or self.tune is None else self.tune
        chosen = own.bases
        return [base for base in self.testbeds[testbed].bases if chosen is None or base in chosen]

    def seeds(self, stage: Stage, method: str) -> list[int]:
        """Seeds of a method in a stage, in order."""
        if stage == "tune":
            return self.tune.seeds if self.tune else []
        return list(dict.fromkeys([*self.final.seeds, *self.final.more_seeds.get(method, [])]))

    def layers(self, stage: Stage, testbed: str, base: str, method: str) -> dict[str, Settings]:
        """Bundles of settings of a run, by where they stand in the YAML; later ones win."""
        own = self.final if stage == "final" or self.tune is None else self.tune
        bed = self.testbeds[testbed]
        return {
            "settings": self.settings,
            f"testbeds.{testbed}.settings": bed.settings,
            f"testbeds.{testbed}.bases.{base}": bed.bases[base],
            f"methods.{method}": self.methods[method],
            f"{stage}.settings": own.settings,
        }

    @property
    def stages(self) -> tuple[Stage, ...]:
        return ("tune", "final") if self.tune else ("final",)

    def bundles(self) -> dict[str, Settings]:
        """Every bundle of settings, by where it stands in the YAML."""
        found: dict[str, Settings] = {}
        for stage in self.stages:
            for testbed, bed in self.testbeds.items():
                for base in bed.bases:
                    for method in self.methods:
                        found |= self.layers(stage, testbed, base, method)
        return found


def read_study(path: Path) -> tuple[Study, dict[str, Any]]:
    """A study and the mapping it was read from.

    Raises:
        ConfigError: no such file, not YAML, or a study that cannot be run; says where.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"Cannot read {path}: {error.strerror}.", "Give a sweep's YAML, see docs/sweeps.md."
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}", "Fix the line it names.") from error
    return parse_study(raw), raw


def parse_study(raw: Any) -> Study:
    """The checked study of a YAML mapping.

    Raises:
        ConfigError: see `read_study`.
    """
    given = _section("the sweep", raw, Study)
    name = given["name"] = _name("name", given["name"])
    given["testbeds"] = {
        _name("testbeds", key): _testbed(f"testbeds.{key}", value)
        for key, value in _mapping("testbeds", given["testbeds"]).items()
    }
    given["methods"] = {
        _name("methods", key): _settings(f"methods.{key}", value)
        for key, value in _mapping("methods", given["methods"]).items()
    }
    given["settings"] = _settings("settings", given.get("settings"))
    given["final"] = _stage("final", given["final"], Final)
    if given.get("tune") is not None:
        given["tune"] = _stage("tune", given["tune"], Tuning)
    given["keep"] = [_one_of("keep", thing, KEEPABLE) for thing in _list("keep", given.get("keep") or [], empty=True)]
    if given.get("timeout_s") is not None:
        given["timeout_s"] = _number("timeout_s", given["timeout_s"])
    study = Study(**given)
    for part in ("testbeds", "methods"):
        if not given[part]:
            raise ConfigError(f"The sweep {name!r} has no {part}.", "Name at least one.")
    _check_together(study)
    return study


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)`, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def check_keys(study: Study, known: Iterable[str]) -> None:
    """Raise ConfigError for a setting that no run knows, with its place and the nearest one."""
    known = set(known)
    for where, settings in study.bundles().items():
        unknown = [f"{key}{nearest(key, known)}" for key in settings if key not in known]
        if unknown:
            raise ConfigError(f"{where}: unknown setting(s) {', '.join(unknown)}.", "See `scgrpo train --help`.")


def _check_together(study: Study) -> None:
    final = study.final
    if study.tune and final.learning_rates:
        raise ConfigError(
            "final.learning_rates beside tune: the final runs take the rate that tuning chooses.", "Leave one out."
        )
    for method in final.more_seeds:
        if method not in study.methods:
            hint = nearest(method, study.methods)
            raise ConfigError(f"final.more_seeds names {method!r}, no method{hint}.", "Name one of methods.")
    if study.tune or final.learning_rates:
        for where, settings in study.bundles().items():
            if "learning_rate" in settings:
                raise ConfigError(
                    f"{where}.learning_rate beside learning_rates: two places for one number.", "Leave one out."
                )
    _check_bases(study)


def _check_bases(study: Study) -> None:
    everywhere = {base for bed in study.testbeds.values() for base in bed.bases}
    for stage in study.stages:
        own = study.final if stage == "final" or study.tune is None else study.tune
        for base in own.bases or []:
            if base not in everywhere:
                raise ConfigError(
                    f"{stage}.bases names {base!r}, no base of any testbed{nearest(base, everywhere)}.",
                    f"Known: {', '.join(sorted(everywhere))}.",
                )
        for testbed, bed in study.testbeds.items():
            if not study.bases(stage, testbed):
                raise ConfigError(
                    f"{stage}.bases leaves testbed {testbed!r} none.", f"Its own: {', '.join(bed.bases)}."
                )


def _stage(where: str, raw: Any, cls: type) -> Any:
    given = _section(where, raw, cls)
    given["seeds"] = _seeds(f"{where}.seeds", given["seeds"])
    given["settings"] = _settings(f"{where}.settings", given.get("settings"))
    if given.get("learning_rates") is not None:
        rates = [
            _number(f"{where}.learning_rates", rate)
            for rate in _list(f"{where}.learning_rates", given["learning_rates"])
        ]
        given["learning_rates"] = sorted(_distinct(f"{where}.learning_rates", rates))
    if given.get("bases") is not None:
        given["bases"] = [str(base) for base in _list(f"{where}.bases", given["bases"])]
    if "more_seeds" in given:
        more = _mapping(f"{where}.more_seeds", given["more_seeds"] or {})
        given["more_seeds"] = {key: _seeds(f"{where}.more_seeds.{key}", value) for key, value in more.items()}
    return cls(**given)


def _testbed(where: str, raw: Any) -> Testbed:
    given = _section(where, raw, Testbed)
    given["recipe"] = str(given["recipe"])
    given["settings"] = _settings(f"{where}.settings", given.get("settings"))
    bases = _mapping(f"{where}.bases", {"default": {}} if given.get("bases") is None else given["bases"])
    if not bases:
        raise ConfigError(f"{where}.bases is empty.", "Leave it out for the recipe's own model.")
    given["bases"] = {
        _name(f"{where}.bases", key): _settings(f"{where}.bases.{key}", value) for key, value in bases.items()
    }
    return Testbed(**given)


def _section(where: str, raw: Any, cls: type) -> dict[str, Any]:
    """The mapping of a dataclass: no key it does not know, every key it needs."""
    from dataclasses import MISSING

    given = dict(_mapping(where, raw))
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(cls)}
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {key!r}{nearest(str(key), known)}.", f"Its keys: {', '.join(known)}."
            )
    missing = [key for key, needed in known.items() if needed and given.get(key) is None]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}.", "See docs/sweeps.md for an example.")
    return given


def _settings(where: str, raw: Any) -> Settings:
    settings = _mapping(where, {} if raw is None else raw)
    for key, value in settings.items():
        if key in RESERVED:
            raise ConfigError(f"{where}.{key}: the sweep itself decides this for every run.", "Leave it out.")
        if value is None:
            raise ConfigError(f"{where}.{key} has no value.", "Give one, or leave the key out.")
    return settings


def _mapping(where: str, raw: Any) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} is {raw!r}.", "Give a mapping: one `key: value` per line.")
    return {str(key): value for key, value in raw.items()}


def _list(where: str, raw: Any, *, empty: bool = False) -> list[Any]:
    if not isinstance(raw, list) or not (raw or empty):
        raise ConfigError(f"{where} is {raw!r}.", "Give a list with at least one entry, for example [1, 2].")
    return raw


def _seeds(where: str, raw: Any) -> list[int]:
    seeds = _list(where, raw)
    wrong = [seed for seed in seeds if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0]
    if wrong:
        raise ConfigError(f"{where} holds {wrong[0]!r}.", "Seeds are integers from 0.")
    return _distinct(where, seeds)


def _distinct(where: str, values: Sequence[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ConfigError(f"{where} names a value twice: {list(values)}.", "Name each once.")
    return list(values)


def _number(where: str, raw: Any) -> float:
    try:
        # YAML reads 3e-4, without a point, as text.
        number = float(raw) if isinstance(raw, int | float | str) and not isinstance(raw, bool) else float("nan")
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise ConfigError(f"{where} holds {raw!r}.", "Give a number above 0, for example 3.0e-4.")
    return number


def _name(where: str, raw: Any) -> str:
    if not _NAME.fullmatch(str(raw)):
        raise ConfigError(
            f"{where}: {raw!r} cannot name a folder.", "Use letters, digits and _ . + -, a letter or digit first."
        )
    return str(raw)


def _one_of(where: str, raw: Any, known: Sequence[str]) -> str:
    if raw not in known:
        raise ConfigError(f"{where} holds {raw!r}{nearest(str(raw), known)}.", f"Choose from {', '.join(known)}.")
    return str(raw)
