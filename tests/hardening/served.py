"""What `export` and `app` are given: damaged runs, settings that cannot work, addresses that are none."""

from __future__ import annotations

from pathlib import Path

from hardening.case import Case, Write, both, write_bytes, write_text

_MEDICAL = "run: a\nseed: 1\ndata: {root: b}\nmodel: {encoder: test_resnet}\n"
_ABOUT = '{"layout": "pairs", "classes": ["a", "b"], "channels": ["grey"], "splits": {}}'
_EXPORT = "export AT/run -o AT/net.pt2"


def _run(**files: bytes | str) -> Write:
    """A run folder of these files; two underscores stand for the dot of an ending."""
    return both(
        *(
            write_bytes(f"run/{name.replace('__', '.')}", content if isinstance(content, bytes) else content.encode())
            for name, content in files.items()
        )
    )


def _nothing(at: Path) -> None:
    """The input stands on the command line."""


def exported() -> list[Case]:
    """Runs and settings that nothing can be exported of."""
    configs: dict[str, str | bytes] = {
        "empty": "",
        "binary": bytes(range(256)),
        "invalid_utf8": b"run: \xff\xfe\n",
        "a_list": "- run\n- model\n",
        "a_word": "run\n",
        "not_closed": "run: [1, 2\n",
        "deep": "run: " + "[" * 1200 + "]" * 1200,
        "of_code": "run: !!python/object/apply:os.system ['touch pwned']\n",
        "of_5000_digits": "run: a\nseed: " + "9" * 5000 + "\n",
        "two_documents": _MEDICAL + "---\n" + _MEDICAL,
        "unknown_part": _MEDICAL + "modle: {}\n",
        "without_model": "run: a\nseed: 1\n",
        "model_a_list": "run: a\nmodel: [1]\n",
        "model_of_another_field": "run: a\nmodel: {encodr: test_resnet}\n",
        "of_a_detector": "run: a\nmodel: {backbone: resnet, memory: 3}\n",
    }
    cases = [
        Case(f"config_{name}", _run(config__yaml=text), _EXPORT, ("run/config.yaml|config.yaml",))
        for name, text in configs.items()
    ]
    abouts: dict[str, str | bytes] = {
        "empty": "",
        "binary": bytes(range(256)),
        "deep": "[" * 50_000,
        "a_list": "[]",
        "without_classes": '{"layout": "pairs", "channels": ["grey"]}',
        "of_5000_digits": '{"classes": ' + "9" * 5000 + "}",
    }
    cases += [
        Case(f"dataset_{name}", _run(config__yaml=_MEDICAL, dataset__json=text), _EXPORT, ("dataset.json",))
        for name, text in abouts.items()
    ]
    cases += [
        Case("missing", _nothing, _EXPORT, ("run", "does not exist")),
        Case("a_file", write_text("run", "x"), _EXPORT, ("run", "not a run folder")),
        Case("empty", lambda at: (at / "run").mkdir(), _EXPORT, ("run", "no config.yaml")),
        Case("without_dataset", _run(config__yaml=_MEDICAL), _EXPORT, ("dataset.json",)),
        Case("unknown_backbone", _nothing, "export vimm_tiny -o AT/net.pt2", ("vimm_tiny",)),
        Case("other_ending", _nothing, "export vim_tiny -o AT/net.pth", ("net.pth", "onnx")),
        Case("size_of_0", _nothing, "export vim_tiny -o AT/net.pt2 --size 0 32", ("--size",)),
        Case("size_of_one", _nothing, "export vim_tiny -o AT/net.pt2 --size 32", ("--size",)),
        Case("size_of_four", _nothing, "export vim_tiny -o AT/net.pt2 --size 1 2 3 4", ("--size",)),
        Case("batch_of_0", _nothing, "export vim_tiny -o AT/net.pt2 --batch 0", ("--batch",)),
        Case("no_threads", _nothing, "export vim_tiny -o AT/net.pt2 --threads 0", ("--threads",)),
        Case("features_of_a_run", _run(config__yaml=_MEDICAL), f"{_EXPORT} --features", ("--features",)),
    ]
    return cases


def app() -> list[Case]:
    """Ports, sizes, devices and models that `app` cannot serve with; none of them opens a port."""
    options = {
        "port": ("--port", ("0", "-1", "65536", "99999999999999999999"), "--port"),
        "threads": ("--threads", ("0", "-2"), "--threads"),
        "upload": (
            "--max-upload",
            ("many", "5", "GB", "nanGB", "infGB", "0GB", "0MB", "1e400GB", "0x10MB"),
            "size of",
        ),
        "device": ("--device", ("quantum", "cuda:99", "cpu:x", "CUDA", "cuda:-1"), "--device"),
    }
    cases = [
        Case(f"{name}_{number}", _nothing, f"app {option} {value}", (says,))
        for name, (option, values, says) in options.items()
        for number, value in enumerate(values)
    ]
    runs = {
        "missing": _nothing,
        "a_file": write_text("run", ""),
        "empty": lambda at: (at / "run").mkdir(),
        "binary": _run(config__yaml=bytes(range(256))),
        "without_dataset": _run(config__yaml=_MEDICAL),
    }
    cases += [
        Case(f"{kind}_{name}", write, f"app --{kind} AT/run --device cpu", ("run|Gradio",))
        for kind in ("medical", "change")
        for name, write in runs.items()
    ]
    return cases
