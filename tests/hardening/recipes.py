"""YAML of every command that trains, settings on the command line, and variables of the environment."""

from __future__ import annotations

from hardening.case import Case, Write, both, write_bytes

_COMMANDS = ("medical", "change", "scene", "mot", "sot", "video")
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(12)
)


def recipes() -> list[Case]:
    """What `--config` is given."""
    texts: dict[str, tuple[bytes, str]] = {
        "binary": (bytes(range(256)), "recipe.yaml"),
        "invalid_utf8": (b"run: \xff\xfe\n", "recipe.yaml"),
        "utf16": ("run: a\n".encode("utf-16"), "recipe.yaml"),
        "not_closed": (b"run: [1, 2\n", "recipe.yaml"),
        "tabs": (b"trainer:\n\tmax_epochs: 3\n", "recipe.yaml"),
        "a_list": (b"- run\n- data\n", "recipe.yaml"),
        "a_word": (b"run\n", "recipe.yaml"),
        "python_object": (b"run: !!python/object/apply:os.system ['touch pwned']\n", "recipe.yaml"),
        "python_name": (b"run: !!python/name:os.system\n", "recipe.yaml"),
        "unknown_key": (b"runn: a\n", "runn"),
        "unknown_part": (b"run: a\ntrainer: {max_epoch: 3}\n", "max_epoch"),
        "epochs_of_words": (b"run: a\ntrainer: {max_epochs: many}\n", "max_epochs"),
        "epochs_a_list": (b"run: a\ntrainer: {max_epochs: [1]}\n", "max_epochs"),
        "trainer_a_number": (b"run: a\ntrainer: 3\n", "trainer"),
        "unknown_alias": (b"run: *nowhere\n", "recipe.yaml"),
        "deep": (b"run: " + b"[" * 1200 + b"]" * 1200, "recipe.yaml"),
        "bomb": (_BOMB.encode(), "recipe.yaml|option"),
        "two_documents": (b"run: a\n---\nrun: b\n", "recipe.yaml"),
    }
    cases = [
        Case(
            f"{name}_{command}",
            write_bytes("recipe.yaml", text),
            f"{command} train --config AT/recipe.yaml",
            (says,),
        )
        for number, (name, (text, says)) in enumerate(texts.items())
        for command in (_COMMANDS[number % len(_COMMANDS)], _COMMANDS[(number + 1) % len(_COMMANDS)])
    ]
    for command in _COMMANDS:
        words = f"{command} train --config AT/recipe.yaml"
        cases += [
            Case(f"missing_{command}", _nothing, words, ("recipe.yaml",)),
            Case(f"a_folder_{command}", lambda at: (at / "recipe.yaml").mkdir(), words, ("recipe.yaml",)),
            Case(f"unknown_setting_{command}", _nothing, f"{command} train --trainer.max_eposh 3", ("max_eposh",)),
            Case(f"epochs_nan_{command}", _nothing, f"{command} train --trainer.max_epochs nan", ("max_epochs",)),
        ]
    scene = "hyperspectral train --run AT/run --config AT/recipe.yaml"
    cases += [
        Case(f"hyperspectral_{name}", write_bytes("recipe.yaml", text), scene, ("recipe.yaml",))
        for name, text in {
            **{name: text for name, (text, _) in texts.items() if name not in ("bomb",)},
            "seeds_of_words": b"seeds: three\n",
            "seeds_huge": b"seeds: 1" + b"0" * 5000 + b"\n",
            "empty": b"",
            "bool_for_a_number": b"seeds: true\n",
        }.items()
        if name not in ("empty",)
    ]
    cases += [
        Case("hyperspectral_missing", _nothing, scene, ("recipe.yaml",)),
        Case("hyperspectral_a_folder", lambda at: (at / "recipe.yaml").mkdir(), scene, ("recipe.yaml",)),
    ]
    return cases


def environment() -> list[Case]:
    """Nonsense in STATEFIELD_ variables."""
    volume = "medical evaluate AT/p.png AT/p.png --classes 2 --jobs 1 --json AT/o.json"
    picture = _picture("p.png")
    limits = ("", "many", "nan", "inf", "-1", "0", "1e400", "8GB", "0x10", "\u00b2", "1" * 400)
    return [
        Case(
            f"memory_limit_{number}",
            picture,
            volume,
            ("STATEFIELD_MEMORY_LIMIT_GB", "no size"),
            environment={"STATEFIELD_MEMORY_LIMIT_GB": value},
        )
        for number, value in enumerate(limits)
    ]


def _nothing(at: object) -> None:
    """The input is not there, or stands on the command line."""


def _picture(name: str) -> Write:
    from hardening.images import picture_bytes

    return write_bytes(name, picture_bytes("PNG"))


def lists() -> list[Case]:
    """Lists of cases and sequences that name what is not there, or lies elsewhere."""
    maps = both(_picture("p/a.png"), _picture("t/a.png"))
    change = "change evaluate AT/p AT/t --list AT/list.txt --json AT/o.json"
    cases = [
        Case(f"list_{name}", both(maps, write_bytes("list.txt", text)), change, ("list.txt",))
        for name, text in {
            "leaves": b"../../../../etc/passwd\n",
            "absolute": b"/etc/passwd\n",
            "of_nothing": b"b\n",
            "empty": b"",
            "invalid_utf8": b"\xff\xfe\n",
            "nul": b"a\0b\n",
            "binary": bytes(range(256)) * 8,
        }.items()
    ]
    cases += [
        Case("list_missing", maps, change, ("list.txt",)),
        Case("list_a_folder", both(maps, lambda at: (at / "list.txt").mkdir()), change, ("list.txt",)),
        Case("maps_file_and_folder", maps, "change evaluate AT/p AT/t/a.png", ("a.png", "two folders")),
        Case("sequences_missing", _nothing, "sot evaluate --gt AT/gt --results AT/r", ("gt",)),
    ]
    return cases
