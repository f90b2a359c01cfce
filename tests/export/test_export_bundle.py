"""The bundle format: what was written is read back, and whatever was tampered with is named in one line."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.bundle import (
    BeamOptions,
    Bundle,
    BundleError,
    Exam,
    GoldenHypothesis,
    GoldenSentence,
    Manifest,
    read_certificate,
    read_golden,
    write_bundle,
    write_certificate,
    write_golden,
)
from export.bundle.fields import parse_json
from tests.export.tiny import export_model, random_model

HYPOTHESIS = GoldenHypothesis(
    ids=(7, 9),
    score=-1.25,
    log_probs=(-0.5, -0.25, -0.5),
    best=(((7, -0.5), (4, -2.0)), ((9, -0.25),), ((3, -0.5),)),
    finish_reason="END_TOKEN",
)
SENTENCE = GoldenSentence(
    source="Zwei Hunde, 犬",
    source_ids=(5, 6, 3),
    reference=None,
    greedy=HYPOTHESIS,
    beam=dataclasses.replace(HYPOTHESIS, log_probs=(-0.5, -0.25), best=HYPOTHESIS.best[:2], finish_reason="MAX_TOKENS"),
    beam_options=BeamOptions(beam_size=4, length_penalty=1.0, length_penalty_type="GNMT", max_output_tokens=2),
)
EXAM = Exam(
    manifest_sha256="0" * 64,
    runner="onnxruntime-cpu",
    device="cpu",
    precision="fp32",
    verify_time="2026-01-02T03:04:05Z",
    passed=True,
    sentences=1,
    token_exact_rate=1.0,
    max_log_prob_difference=1e-6,
    max_score_difference=1e-6,
    exceptions=[{"sentence": 3}],
    bleu=41.5,
    tool_versions={"onnxruntime": "1"},
    thresholds={"max_log_prob_difference": 1e-4},
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(random_model(), tmp_path_factory.mktemp("pristine") / "bundle", golden=[SENTENCE]).path


@pytest.fixture
def copy(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    manifest = dataclasses.replace(Bundle.open(folder).manifest, **changes)
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")


def test_a_bundle_says_what_it_was_given(pristine: Path) -> None:
    bundle = Bundle.open(pristine)
    assert bundle.manifest.name == "tiny"
    assert bundle.manifest.decoding.max_output_tokens == bundle.manifest.max_output_tokens == 40
    assert bundle.manifest.suppressed_ids == (0, 1, 2)
    assert bundle.manifest.parameter_count == sum(parameter.numel() for parameter in random_model().parameters())
    assert bundle.graph_path("cpu", "step").is_file()
    assert bundle.tokenizer_path.is_dir()
    assert bundle.golden() == [SENTENCE]
    assert bundle.certificate() == []
    assert set(bundle.manifest.files) == {
        "golden.jsonl",
        "tokenizer/sentencepiece.model",
        *(f"graphs/ort-fp32/{name}.onnx" for name in ("encoder", "step", "argmax", "top_k")),
        "graphs/ort-fp32/weights.bin",
    }
    with pytest.raises(BundleError, match="got a bundle for cpu, wanted one for tensorrt"):
        bundle.graph_path("tensorrt", "step")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_flipped_bit_is_found_and_its_file_named(pristine: Path, data: st.DataObject) -> None:
    files = sorted(path for path in pristine.rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(files))
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        file.write_bytes(flipped)
        with pytest.raises(BundleError) as caught:
            Bundle.open(pristine)
    finally:
        file.write_bytes(content)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(copy: Path) -> None:
    for file in sorted(path for path in copy.rglob("*") if path.is_file()):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(BundleError) as caught:
            Bundle.open(copy)
        assert str(file) in str(caught.value)
        file.write_bytes(content)
    Bundle.open(copy)


@pytest.mark.parametrize("name", ["extra", "graphs/ort-fp32/extra.onnx", "tokenizer/manifest.json", "golden.jsonl.bak"])
def test_an_unlisted_file_is_named(name: str, copy: Path) -> None:
    (copy / name).write_bytes(b"")
    with pytest.raises(BundleError, match="not listed") as caught:
        Bundle.open(copy)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["golden.jsonl", "graphs", "engines", "certificate.json", "manifest.json"])
def test_a_link_is_refused(name: str, copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    if (copy / name).exists():
        (copy / name).rename(outside)
    else:
        outside.mkdir()
    (copy / name).symlink_to(outside)
    with pytest.raises(BundleError, match="wanted a plain file") as caught:
        Bundle.open(copy)
    assert str(copy / name) in str(caught.value)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", "a//b", "", "./a", "a\\b"])
def test_a_path_that_leaves_the_bundle_is_refused(path: str, copy: Path) -> None:
    rewrite_manifest(copy, files={**Bundle.open(copy).manifest.files, path: "0" * 64})
    with pytest.raises(BundleError, match="wanted a plain path below the bundle"):
        Bundle.open(copy)


WRONG_FIELDS: dict[str, dict[str, Any]] = {
    "format_version: got 2, wanted 6": {"format_version": 2},
    "name: got 'No/Name'": {"name": "No/Name"},
    "source_languages: got [], wanted at least one code": {"source_languages": ()},
    "target_languages: got ['de', ''], wanted": {"target_languages": ("de", "")},
    "eos_id: got 301": {"eos_id": 301},
    "suppressed_ids: got [3]": {"suppressed_ids": (3,)},
    "max_source_tokens: got 41, wanted at most max_positions = 40": {"max_source_tokens": 41},
    "parameter_count: got 0, wanted an integer of at least 1": {"parameter_count": 0},
    "graphs/ort-int8/encoder.onnx: missing": {"graphs": {"cpu": "ort-int8"}},
    "graphs: cpu: got '..', wanted ort-* or standard-*": {"graphs": {"cpu": ".."}},
}


@pytest.mark.parametrize("message", WRONG_FIELDS)
def test_a_manifest_that_contradicts_itself_is_refused(message: str, copy: Path) -> None:
    rewrite_manifest(copy, **WRONG_FIELDS[message])
    with pytest.raises(BundleError) as caught:
        Bundle.open(copy)
    assert message in str(caught.value)
    assert str(copy / "manifest.json") in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": NaN}', '{"a": 1, "a": 2}', "[" * 100000, "\xff"])
def test_a_manifest_that_is_none_is_refused(text: str, copy: Path) -> None:
    (copy / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(copy)


@pytest.mark.parametrize("odd", ["9" * 400, "1" * 5000, '"\\ud800"', '"\\ud83d"', "1e999"])
def test_values_that_cannot_be_held_are_refused(odd: str, copy: Path) -> None:
    path = copy / "manifest.json"
    whole = path.read_text()
    for field in ("length_penalty", "license_note", "parameter_count"):
        path.write_text(re.sub(rf'("{field}": ).*?(,?)$', lambda old: old[1] + odd + old[2], whole, flags=re.MULTILINE))
        with pytest.raises(BundleError, match=r"manifest\.json"):
            Bundle.open(copy)


def test_escaped_text_is_text() -> None:
    assert parse_json('"\\ud83d\\ude00 \\u00e4"', where="here") == "\N{GRINNING FACE} ä"


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Manifest)])
def test_every_field_of_the_manifest_is_wanted(field: str, copy: Path) -> None:
    values = json.loads((copy / "manifest.json").read_text())
    for broken in (values | {field: [{}]}, {name: value for name, value in values.items() if name != field}):
        (copy / "manifest.json").write_text(json.dumps(broken))
        with pytest.raises(BundleError, match=field):
            Bundle.open(copy)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="wanted a bundle"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"manifest\.json: No such file"):
        Bundle.open(tmp_path)


def test_certificate_and_engines_are_not_hashed(copy: Path) -> None:
    digest = Bundle.open(copy).digest
    write_certificate(copy / "certificate.json", [EXAM])
    (copy / "engines" / "gpu").mkdir(parents=True)
    (copy / "engines" / "gpu" / "plan").write_bytes(b"plan")
    bundle = Bundle.open(copy)
    assert bundle.digest == digest
    assert bundle.certificate() == [EXAM]


def test_a_broken_certificate_is_named(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    for text in ("{", "{}", "[1]", '[{"runner": "x"}]', '[{"manifest_sha256": "0", "runner": 4}]'):
        path.write_text(text)
        with pytest.raises(BundleError, match=r"certificate\.json"):
            read_certificate(path)


def test_a_certificate_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "certificate.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_certificate(tmp_path / "certificate.json", [EXAM])
    assert [path.name for path in tmp_path.iterdir()] == ["certificate.json"]


def test_golden_sentences_survive_the_file_rounded(tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    exact = dataclasses.replace(HYPOTHESIS, score=-1.23456789)
    write_golden(path, [SENTENCE, dataclasses.replace(SENTENCE, reference="Two dogs", greedy=exact)])
    first, second = read_golden(path)
    assert first == SENTENCE
    assert (second.reference, second.greedy.score) == ("Two dogs", -1.234568)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ids", [-1]),
        ("ids", ["a"]),
        ("log_probs", [1]),
        ("best", [[[1, 2, 3]]] * 3),
        ("best", 3),
        ("finish_reason", "x"),
    ],
)
def test_a_broken_golden_line_is_named(field: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    write_golden(path, [SENTENCE])
    record = json.loads(path.read_text(encoding="utf-8"))
    record["greedy"][field] = value
    path.write_text(path.read_text(encoding="utf-8") + json.dumps(record), encoding="utf-8")
    with pytest.raises(BundleError, match=rf"golden\.jsonl:2: greedy: {field}"):
        read_golden(path)


def test_a_bundle_is_replaced_whole_or_not_at_all(copy: Path) -> None:
    manifest = Bundle.open(copy).manifest

    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(copy, manifest=manifest, fill=fail)
    assert Bundle.open(copy).manifest == manifest
    assert [path.name for path in copy.parent.iterdir()] == ["bundle"], "nothing is left beside it"

    write_certificate(copy / "certificate.json", [EXAM])
    assert export_model(random_model(seed=2), copy).certificate() == []
    assert [path.name for path in copy.parent.iterdir()] == ["bundle"]


def test_other_peoples_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(BundleError, match="other files"):
        export_model(random_model(), tmp_path)
    with pytest.raises(BundleError, match="no directory"):
        export_model(random_model(), tmp_path / "notes")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
    empty = tmp_path / "empty"
    empty.mkdir()
    export_model(random_model(), empty)
